// An image scaled to fit a square, at its top left, on grey: the input of the person detector.
#pragma once

#include "axis_tap.h"
#include "parallel_for.h"

namespace dispose_rt {

// The bits of OpenCV's bilinear resize of 8-bit images. Weights are in 1/2048 along both axes, and the sums are cut
// twice on the way. Halving and copying, for which OpenCV has code of its own, come out the same.
// Row: a line of the square. Columns: pixels along x.
struct Letterbox {
    static constexpr Position kLanes = 4;
    static constexpr float kPaddingLevel = 114;

    const std::uint8_t* image;   // [.., image_width, 3]
    const AxisTap* row_taps;     // [scaled_height]
    const AxisTap* column_taps;  // [scaled_width]
    float* pixels;               // [3, side, side]
    Index image_width, scaled_height, scaled_width, side;

    DISPOSE_TARGET void operator()(Position y, Span<kLanes> span) const {
        OutputLine<float, kLanes> lines[3];
        DISPOSE_UNROLL for (int channel = 0; channel < 3; ++channel) {
            lines[channel] = OutputLine<float, kLanes>(pixels + (channel * side + y) * side, span);
        }
        const Position covered = static_cast<Position>(y < scaled_height ? scaled_width : 0);
        const AxisTap down = covered > 0 ? row_taps[y] : AxisTap{};
        const std::uint8_t* const upper = image + down.first * image_width * 3;
        const std::uint8_t* const lower = image + down.second * image_width * 3;
        span.each([&](Column x) {
            if (x >= covered) {
                DISPOSE_UNROLL for (int channel = 0; channel < 3; ++channel) lines[channel][x] = kPaddingLevel;
                return;
            }
            const AxisTap across = column_taps[x];
            DISPOSE_UNROLL for (int channel = 0; channel < 3; ++channel) {
                const std::int32_t above = ((blend(upper, across, channel) >> 4) * down.first_weight) >> 16;
                const std::int32_t below = ((blend(lower, across, channel) >> 4) * down.second_weight) >> 16;
                lines[channel][x] = static_cast<float>((above + below + 2) >> 2);
            }
        });
        DISPOSE_UNROLL for (int channel = 0; channel < 3; ++channel) lines[channel].store();
    }
};

// Tables of taps lie inside the image, their weights add up to 2048; the scaled image fits into the square.
inline Status letterbox(const std::uint8_t* image,   // [.., image_width, 3]
                        const AxisTap* row_taps,     // [scaled_height]
                        const AxisTap* column_taps,  // [scaled_width]
                        float* pixels,               // [3, side, side] 0..255
                        Index image_width, Index scaled_height, Index scaled_width, Index side, Stream stream) {
    const Letterbox fit{image, row_taps, column_taps, pixels, image_width, scaled_height, scaled_width, side};
    return parallel_for(side, side, stream, fit);
}

}  // namespace dispose_rt
