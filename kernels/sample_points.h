// Single pixels of a bilinearly enlarged feature map (half-pixel centres), without enlarging it.
#pragma once

#include "parallel_for.h"

namespace dispose_rt {

// The two source pixels and the weight of the second one for one pixel of an enlarged axis.
struct LinearTap {
    Index first, second;
    float weight;
};

DISPOSE_TARGET inline LinearTap linear_tap(Index position, Index source_length, Index length) {
    const Index at = position < 0 ? 0 : position < length ? position : length - 1;
    const float scale = static_cast<float>(source_length) / static_cast<float>(length);
    const float centre = scale * (static_cast<float>(at) + 0.5f) - 0.5f;
    const float source = centre > 0 ? centre : 0.0f;
    const Index before = static_cast<Index>(source);
    const Index first = before < source_length ? before : source_length - 1;  // where rounding passed the last pixel
    const Index second = first + 1 < source_length ? first + 1 : first;
    return {first, second, source - static_cast<float>(first)};
}

// Row: a point. Columns: channels.
struct SamplePoints {
    static constexpr Position kLanes = 1;  // neighbours lie a whole map apart

    const float* features;          // [channels, source_height, source_width]
    const std::int32_t* positions;  // [points, 2] x, y in pixels of the enlarged map
    float* samples;                 // [points, channels]
    Index channels, source_height, source_width, height, width;

    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        const LinearTap x = linear_tap(positions[2 * row], source_width, width);
        const LinearTap y = linear_tap(positions[2 * row + 1], source_height, height);
        OutputLine<float, kLanes> line(samples + row * channels, span);
        span.each([&](Column channel) {
            const float* const map = features + channel * source_height * source_width;
            const float* const upper = map + y.first * source_width;
            const float* const lower = map + y.second * source_width;
            const float above = (1 - x.weight) * upper[x.first] + x.weight * upper[x.second];
            const float below = (1 - x.weight) * lower[x.first] + x.weight * lower[x.second];
            line[channel] = (1 - y.weight) * above + y.weight * below;
        });
        line.store();
    }
};

// A position outside the enlarged map counts as its border. The map is no smaller than its source.
inline Status sample_points(const float* features,          // [channels, source_height, source_width]
                            const std::int32_t* positions,  // [points, 2] x, y in pixels of the enlarged map
                            float* samples,                 // [points, channels]
                            Index points, Index channels, Index source_height, Index source_width, Index height,
                            Index width, Stream stream) {
    const SamplePoints sample{features, positions, samples, channels, source_height, source_width, height, width};
    return parallel_for(points, channels, stream, sample);
}

}  // namespace dispose_rt
