// A flow field brought to the size of an image by the nearest pixel, and to its units.
#pragma once

#include "parallel_for.h"

namespace dispose_rt {

// Row: a line of one channel of a frame. Columns: pixels along x.
struct ResampleFlow {
    static constexpr Position kLanes = 4;

    const float* source;          // [frames, 2, source_height, source_width]
    const std::int32_t* rows;     // [height] line of the source
    const std::int32_t* columns;  // [width] column of the source
    float* flow;                  // [frames, 2, height, width]
    Index source_height, source_width, height, width;
    float x_scale, y_scale;

    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        const auto [plane, y] = split(row, height);
        const float scale = plane % 2 == 0 ? x_scale : y_scale;
        const float* const nearest = source + (plane * source_height + rows[y]) * source_width;
        const InputLine<std::int32_t, kLanes> from(columns, span);
        OutputLine<float, kLanes> line(flow + row * width, span);
        span.each([&](Column x) { line[x] = nearest[from[x]] * scale; });
        line.store();
    }
};

// Every entry of the tables lies inside the source.
inline Status resample_flow(const float* source,          // [frames, 2, source_height, source_width] x, y
                            const std::int32_t* rows,     // [height]
                            const std::int32_t* columns,  // [width]
                            float* flow,                  // [frames, 2, height, width] x, y
                            Index frames, Index source_height, Index source_width, Index height, Index width,
                            float x_scale, float y_scale, Stream stream) {
    const ResampleFlow resample{source,       rows,   columns, flow,    source_height,
                                source_width, height, width,   x_scale, y_scale};
    return parallel_for(frames * 2 * height, width, stream, resample);
}

}  // namespace dispose_rt
