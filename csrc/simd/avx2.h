// SPDX-License-Identifier: Apache-2.0
// AVX2 and FMA: 256-bit vectors, 16 registers.
constexpr int kLanes = 8;
constexpr int kRegisters = 16;
constexpr int kOutputs = 4;      // output channels in a register tile
constexpr int kListVectors = 8;  // vectors of pixels in a tile of the ternary lists
constexpr int kLinearRows = 3;   // rows of the batch in a register tile of the linear layer, by 4 outputs
