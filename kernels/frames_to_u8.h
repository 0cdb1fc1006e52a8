// Decoded frames, about -1..1 and planar, as 8-bit RGB pixels.
#pragma once

#include "parallel_for.h"

namespace dispose_rt {

// Row: a line of a frame. Columns: pixels along x.
struct FramesToU8 {
    const float* frames;   // [frames, 3, height, width]
    std::uint8_t* pixels;  // [frames, height, width, 3]
    Index height, width;

    DISPOSE_TARGET void operator()(Index row, Index begin, Index end) const {
        const Index frame = row / height, y = row % height;
        for (Index channel = 0; channel < 3; ++channel) {
            const float* const line = frames + ((frame * 3 + channel) * height + y) * width;
            for (Index x = begin; x < end; ++x) pixels[(row * width + x) * 3 + channel] = level(line[x]);
        }
    }

    // Truncated, not rounded, as the reference does. NaN becomes 0: no comparison with it holds.
    DISPOSE_TARGET static std::uint8_t level(float value) {
        const float unit = value * 0.5f + 0.5f;
        const float clamped = unit > 0.0f ? (unit < 1.0f ? unit : 1.0f) : 0.0f;
        return static_cast<std::uint8_t>(clamped * 255.0f);
    }
};

inline Status frames_to_u8(const float* frames,   // [frames, 3, height, width]
                           std::uint8_t* pixels,  // [frames, height, width, 3]
                           Index count, Index height, Index width, Stream stream) {
    const FramesToU8 convert{frames, pixels, height, width};
    return parallel_for(count * height, width, stream, convert);
}

}  // namespace dispose_rt
