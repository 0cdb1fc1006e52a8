// A window of an image, scaled and normalised: the input of the pose network.
#pragma once

#include "axis_tap.h"
#include "parallel_for.h"

namespace dispose_rt {

// The bits of OpenCV 4.10's bilinear warpAffine without rotation: weights are in 1/32 along both axes, and their
// products are summed in whole numbers and rounded once.
// Row: a line of the crop. Columns: pixels along x.
struct CropPerson {
    static constexpr Position kLanes = 4;
    static constexpr int kLevels = 256, kProductBits = 10;

    const std::uint8_t* image;   // [.., image_width, 3]
    const AxisTap* row_taps;     // [height]
    const AxisTap* column_taps;  // [width]
    const float* normalised;     // [3, 256] what a level of a channel becomes
    float* pixels;               // [3, height, width]
    Index image_width, height, width;

    DISPOSE_TARGET void operator()(Position y, Span<kLanes> span) const {
        OutputLine<float, kLanes> lines[3];
        DISPOSE_UNROLL for (int channel = 0; channel < 3; ++channel) {
            lines[channel] = OutputLine<float, kLanes>(pixels + (channel * height + y) * width, span);
        }
        const AxisTap down = row_taps[y];
        const std::uint8_t* const upper = image + down.first * image_width * 3;
        const std::uint8_t* const lower = image + down.second * image_width * 3;
        span.each([&](Column x) {
            const AxisTap across = column_taps[x];
            DISPOSE_UNROLL for (int channel = 0; channel < 3; ++channel) {
                const std::int32_t total = blend(upper, across, channel) * down.first_weight +
                                           blend(lower, across, channel) * down.second_weight;
                const std::int32_t level = (total + (1 << (kProductBits - 1))) >> kProductBits;
                lines[channel][x] = normalised[channel * kLevels + level];
            }
        });
        DISPOSE_UNROLL for (int channel = 0; channel < 3; ++channel) lines[channel].store();
    }
};

// Tables of taps lie inside the image; the weights of a tap are 0 or more and add up to 32 at most.
inline Status crop_person(const std::uint8_t* image,   // [.., image_width, 3]
                          const AxisTap* row_taps,     // [height]
                          const AxisTap* column_taps,  // [width]
                          const float* normalised,     // [3, 256]
                          float* pixels,               // [3, height, width]
                          Index image_width, Index height, Index width, Stream stream) {
    const CropPerson crop{image, row_taps, column_taps, normalised, pixels, image_width, height, width};
    return parallel_for(height, width, stream, crop);
}

}  // namespace dispose_rt
