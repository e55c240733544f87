// SPDX-License-Identifier: Apache-2.0
// The packed ternary weight, format 1: 2 bits a weight, four to a byte, low bits first, rows padded to whole
// bytes.
#pragma once

#include <cstdint>

namespace dynkern {

enum TernaryCode : int { kZero = 0, kPlus = 1, kMinus = 2 };  // 3 is invalid

constexpr int64_t packed_row_bytes(int64_t size) { return (size + 3) / 4; }

constexpr int code_at(const uint8_t* row, int64_t k) { return row[k / 4] >> (k % 4 * 2) & 3; }

}  // namespace dynkern
