// 8-bit frames as numbers from -1 to 1: the input of the pose encoder.
#pragma once

#include "parallel_for.h"

namespace dispose_rt {

// Row: a line of one channel of a frame. Columns: pixels along x.
struct NormalizeFrames {
    static constexpr Position kLanes = 4;

    const std::uint8_t* frames;  // [lines, width]
    float* pixels;               // [lines, width]
    Index width;

    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        const InputLine<std::uint8_t, kLanes> levels(frames + row * width, span);
        OutputLine<float, kLanes> line(pixels + row * width, span);
        // A division, as in the reference: the product with the reciprocal has other bits.
        span.each([&](Column x) { line[x] = static_cast<float>(levels[x]) / 127.5f - 1.0f; });
        line.store();
    }
};

inline Status normalize_frames(const std::uint8_t* frames,  // [frames, 3, height, width]
                               float* pixels,               // [frames, 3, height, width]
                               Index count, Index height, Index width, Stream stream) {
    return parallel_for(count * 3 * height, width, stream, NormalizeFrames{frames, pixels, width});
}

}  // namespace dispose_rt
