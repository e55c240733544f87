// SPDX-License-Identifier: Apache-2.0
// AVX-512 F, BW, DQ, VL: 512-bit vectors, 32 registers.
constexpr int kLanes = 16;
constexpr int kRegisters = 32;
constexpr int kOutputs = 6;       // output channels in a register tile
constexpr int kListVectors = 16;  // vectors of pixels in a tile of the ternary lists
constexpr int kLinearRows = 6;    // rows of the batch in a register tile of the linear layer, by 4 outputs
