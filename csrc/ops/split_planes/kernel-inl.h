// SPDX-License-Identifier: Apache-2.0

void split_planes(const SplitPlanes& a) {
  for (int64_t c = 0; c < a.channels; ++c) {
    for (int copy = 0; copy < a.copies[0]; ++copy) {
      float* even = a.y + c * a.y_stride + copy * a.copies[1] * a.plane;
      for (int r = 0; r <= a.rows; ++r, even += a.pitch) {
        const int row = 2 * r + copy;
        const float* from = a.x + c * a.x_stride + static_cast<int64_t>(row) * a.x_pitch;
        const bool zero = r == a.rows || row >= a.x_rows;
        for (int j = 0; j < a.pitch; j += kLanes) {
          const Vec low = zero ? Vec{} : load(from + 2 * j),
                    high = zero ? Vec{} : load(from + 2 * j + kLanes);
          const int count = a.pitch - j < kLanes ? a.pitch - j : kLanes;
          store_first(even + j, even_lanes(low, high), count);
          if (a.copies[1] == 2) store_first(even + a.plane + j, odd_lanes(low, high), count);
        }
      }
    }
  }
}
