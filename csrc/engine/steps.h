// SPDX-License-Identifier: Apache-2.0
// The kinds of steps, made for a program whose values have their layouts.
#pragma once

#include <memory>

#include "engine/program.h"

namespace dynkern::engine {

// Padding that a convolution wants around its input so that it can read it in place; -1 if it needs planes of
// its own.
int direct_padding(const ConvSpec& spec, const Value& x, const Value& y, const Store& store);

// Whether the depthwise kernel takes a convolution; it runs if the padding lets it read in place.
bool is_depthwise(const ConvSpec& spec, const Value& x, const Store& store);

std::unique_ptr<Step> make_depthwise_conv2d(const ConvSpec& spec, Program& program);
// Padding that a convolution of stride 2 wants around its input, so that its planes are made by vectors; -1
// if that does not help it.
int split_padding(const ConvSpec& spec, const Value& x);

std::unique_ptr<Step> make_conv2d(const ConvSpec& spec, Program& program);
std::unique_ptr<Step> make_paired(std::unique_ptr<Step> first, std::unique_ptr<Step> second,
                                  Program& program);
std::unique_ptr<Step> make_linear(const LinearSpec& spec, Program& program);
std::unique_ptr<Step> make_pool2d(const PoolSpec& spec, Program& program);
std::unique_ptr<Step> make_adaptive_average(int x, int y, Program& program);
std::unique_ptr<Step> make_pointwise(int x, int y, const StepEpilogue& epilogue, Program& program);
std::unique_ptr<Step> make_multiply(int x, int y, int gate, Program& program);
std::unique_ptr<Step> make_concat(const std::vector<int>& xs, int y, Program& program);
std::unique_ptr<Step> make_crop(const CropSpec& spec, Program& program);
std::unique_ptr<Step> make_quantize(int x, int y, const StepEpilogue& epilogue, Program& program);
std::unique_ptr<Step> make_dequantize(int x, int y, const StepEpilogue& epilogue, Program& program);
// The same to and from bytes whose channels are neighbours.
std::unique_ptr<Step> make_to_bytes(int x, int y, const StepEpilogue& epilogue, Program& program);
std::unique_ptr<Step> make_from_bytes(int x, int y, const StepEpilogue& epilogue, Program& program);
std::unique_ptr<Step> make_quantized_max_pool(const PoolSpec& spec, Program& program);
std::unique_ptr<Step> make_quantized_crop(const CropSpec& spec, Program& program);
std::unique_ptr<Step> make_flatten(int x, int y, Program& program);
std::unique_ptr<Step> make_softmax(int x, int y, bool log, Program& program);

}  // namespace dynkern::engine
