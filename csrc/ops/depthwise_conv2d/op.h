// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/sliced_conv2d/op.h"

namespace dynkern {

// Whether the depthwise kernel takes a call.
bool is_depthwise(const ConvCall& call);

void run_depthwise_conv2d(const ConvCall& call, const ConvWeight& weight);

}  // namespace dynkern
