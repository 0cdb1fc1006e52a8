// Two pixels of one axis and how much each counts: resizing in whole numbers, from tables that the host computes.
#pragma once

#include "target.h"

namespace dispose_rt {

// A pixel outside the image has weight 0 and an index inside it.
struct AxisTap {
    std::int32_t first, second;
    std::int32_t first_weight, second_weight;
};

static_assert(sizeof(AxisTap) == 4 * sizeof(std::int32_t), "a table of taps is an array [count, 4]");

// The weighted sum of one channel of two pixels in a line of RGB pixels.
DISPOSE_TARGET inline std::int32_t blend(const std::uint8_t* line, const AxisTap& tap, int channel) {
    return line[Index{3} * tap.first + channel] * tap.first_weight +
           line[Index{3} * tap.second + channel] * tap.second_weight;
}

}  // namespace dispose_rt
