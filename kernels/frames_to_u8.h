// Decoded frames, about -1..1 and planar, as 8-bit RGB pixels.
#pragma once

#include "float_bits.h"
#include "parallel_for.h"

namespace dispose_rt {

struct Rgb {
    std::uint8_t channels[3];
};

// Row: a line of a frame. Columns: pixels along x.
struct FramesToU8 {
    static constexpr Position kLanes = 4;

    const float* frames;      // [frames, 3, height, width]
    Rgb* pixels;              // [frames, height, width]
    std::int32_t* nonfinite;  // [1]
    Index height, width;

    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        const auto [frame, y] = split(row, height);
        OutputLine<Rgb, kLanes> line(pixels + row * width, span);
        std::uint32_t found = 0;
        DISPOSE_UNROLL for (int channel = 0; channel < 3; ++channel) {
            const InputLine<float, kLanes> plane(frames + ((frame * Index{3} + channel) * height + y) * width, span);
            span.each([&](Column x) { found |= nonfinite_bit(plane[x]); });  // on its own: a CPU takes many at a time
            span.each([&](Column x) { line[x].channels[channel] = level(plane[x]); });
        }
        line.store();
        if (found != 0) raise_flag(nonfinite);
    }

    // Truncated, not rounded, as the reference does. NaN becomes 0: no comparison with it holds.
    DISPOSE_TARGET static std::uint8_t level(float value) {
        const float unit = value * 0.5f + 0.5f;
        const float clamped = unit > 0.0f ? (unit < 1.0f ? unit : 1.0f) : 0.0f;
        return static_cast<std::uint8_t>(clamped * 255.0f);
    }
};

inline Status frames_to_u8(const float* frames,      // [frames, 3, height, width]
                           std::uint8_t* pixels,     // [frames, height, width, 3]
                           std::int32_t* nonfinite,  // [1], set to 1 where a value is not finite
                           Index count, Index height, Index width, Stream stream) {
    static_assert(sizeof(Rgb) == 3, "pixels lie side by side");
    const FramesToU8 convert{frames, reinterpret_cast<Rgb*>(pixels), nonfinite, height, width};
    return parallel_for(count * height, width, stream, convert);
}

}  // namespace dispose_rt
