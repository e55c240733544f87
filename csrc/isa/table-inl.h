// SPDX-License-Identifier: Apache-2.0
// Compiles every kernel body for one ISA and lists them in its table. The including file names the ISA and
// its header.
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
// GCC 12 takes the undefined operands of its own intrinsics for uninitialised variables.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "ops/kernels.h"
#include "ops/winograd/cuts.h"

namespace dynkern::DYNKERN_ISA {
namespace {

#include DYNKERN_SIMD
#include "simd/vector.h"
#include "simd/integer.h"
#include "simd/bytes.h"
#include "ops/activation-inl.h"
#include "ops/pixel_tiles-inl.h"
#include "ops/word_tiles-inl.h"
#include "ops/channel_conv2d/tiles-inl.h"
#include "ops/channel_conv2d/kernel-inl.h"
#include "ops/depthwise_conv2d/kernel-inl.h"
#include "ops/pointwise/kernel-inl.h"
#include "ops/pool2d/kernel-inl.h"
#include "ops/quantize/kernel-inl.h"
#include "ops/quantized_conv2d/kernel-inl.h"
#include "ops/quantized_max_pool/kernel-inl.h"
#include "ops/sliced_conv2d/kernel-inl.h"
#include "ops/sliced_linear/kernel-inl.h"
#include "ops/split_planes/kernel-inl.h"
#include "ops/ternary/kernel-inl.h"
#include "ops/ternary_int8/ends-inl.h"
#include "ops/ternary_int8/sums-inl.h"
#include "ops/ternary_bytes/kernel-inl.h"
#include "ops/winograd/kernel-inl.h"
#include "ops/channel_winograd/kernel-inl.h"

#define DYNKERN_TEXT(name) #name
#define DYNKERN_NAME(name) DYNKERN_TEXT(name)

}  // namespace

extern const KernelTable table;
const KernelTable table = {DYNKERN_NAME(DYNKERN_ISA), kLanes,
#define DYNKERN_ENTRY(name, Arguments) name,
                           DYNKERN_KERNELS(DYNKERN_ENTRY)
#undef DYNKERN_ENTRY
};

}  // namespace dynkern::DYNKERN_ISA
