// SPDX-License-Identifier: Apache-2.0
// Any CPU: 128-bit vectors (what x86-64 and 64-bit Arm always have), 16 registers.
constexpr int kLanes = 4;
constexpr int kRegisters = 16;
constexpr int kOutputs = 4;      // output channels in a register tile
constexpr int kListVectors = 8;  // vectors of pixels in a tile of the ternary lists
constexpr int kLinearRows = 3;   // rows of the batch in a register tile of the linear layer, by 4 outputs
