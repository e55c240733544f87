// SPDX-License-Identifier: Apache-2.0
// The table of kernels: one line per kernel. Dispatch, the list that Python prints and the tests follow from
// it.
#pragma once

#include "ops/channel_conv2d/kernel.h"
#include "ops/channel_winograd/kernel.h"
#include "ops/depthwise_conv2d/kernel.h"
#include "ops/pointwise/kernel.h"
#include "ops/pool2d/kernel.h"
#include "ops/quantize/kernel.h"
#include "ops/quantized_conv2d/kernel.h"
#include "ops/quantized_max_pool/kernel.h"
#include "ops/sliced_conv2d/kernel.h"
#include "ops/sliced_linear/kernel.h"
#include "ops/split_planes/kernel.h"
#include "ops/ternary/kernel.h"
#include "ops/ternary_bytes/kernel.h"
#include "ops/ternary_int8/kernel.h"
#include "ops/winograd/kernel.h"

#define DYNKERN_KERNELS(X)                     \
  X(sliced_conv2d, SlicedConv2d)               \
  X(channel_conv2d, ChannelConv2d)             \
  X(channel_winograd, ChannelWinograd)         \
  X(winograd_conv2d, WinogradConv2d)           \
  X(depthwise_conv2d, DepthwiseConv2d)         \
  X(sliced_linear, SlicedLinear)               \
  X(quantized_conv2d, QuantizedConv2d)         \
  X(quantized_max_pool, QuantizedMaxPool)      \
  X(quantize, Quantize)                        \
  X(dequantize, Dequantize)                    \
  X(ternary_lists, TernaryListsRun)            \
  X(ternary_dense, TernaryDenseRun)            \
  X(ternary_lookup, TernaryLookupRun)          \
  X(ternary_short_lists, TernaryShortListsRun) \
  X(ternary_finish, TernaryFinish)             \
  X(ternary_bytes, TernaryBytes)               \
  X(bytes_of_planes, BytesOfPlanes)            \
  X(planes_of_bytes, PlanesOfBytes)            \
  X(greatest_magnitude, GreatestMagnitude)     \
  X(quantize_row, QuantizeRow)                 \
  X(quantize_image_row, QuantizeImageRow)      \
  X(gather_row, GatherRow)                     \
  X(pointwise, Pointwise)                      \
  X(pool2d, Pool2d)                            \
  X(split_planes, SplitPlanes)                 \
  X(features, Features)

namespace dynkern {

// The kernels compiled for one instruction set. `lanes` is the number of floats in a vector.
struct KernelTable {
  const char* isa;
  int lanes;
#define DYNKERN_MEMBER(name, Arguments) void (*name)(const Arguments&);
  DYNKERN_KERNELS(DYNKERN_MEMBER)
#undef DYNKERN_MEMBER
};

}  // namespace dynkern
