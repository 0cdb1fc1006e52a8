// Sparse motion hints written into otherwise empty maps, with a mask of where they are.
#pragma once

#include "parallel_for.h"

namespace dispose_rt {

// Row: a line of one channel of a frame. Columns: pixels along x.
struct RasterizeSparseFlow {
    static constexpr Position kLanes = 4;

    const std::int32_t* positions;  // [hints, 2] x, y in pixels, the same in every frame
    const float* values;            // [frames, hints, 2] x, y
    float* flow;                    // [frames, 2, height, width]
    float* mask;                    // [frames, 2, height, width]
    Index hints, height, width;

    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        const auto [plane, y] = split(row, height);
        const auto [frame, channel] = split(plane, 2);
        OutputLine<float, kLanes> flow_line(flow + row * width, span);
        OutputLine<float, kLanes> mask_line(mask + row * width, span);
        span.each([&](Column x) { flow_line[x] = mask_line[x] = 0; });
        for (Index hint = 0; hint < hints; ++hint) {  // in order: the last writer wins
            if (positions[2 * hint + 1] != y) continue;
            const PlacedLine<float, kLanes> value(values + 2 * (frame * hints + hint) + channel, positions[2 * hint], 1,
                                                  span);
            value.each([&](Column x, float hinted) {
                flow_line[x] = hinted;
                mask_line[x] = 1;
            });
        }
        flow_line.store();
        mask_line.store();
    }
};

// Positions outside the map are ignored; of several hints at one pixel the last one counts.
inline Status rasterize_sparse_flow(const std::int32_t* positions,  // [hints, 2] x, y in pixels
                                    const float* values,            // [frames, hints, 2] x, y
                                    float* flow,                    // [frames, 2, height, width]
                                    float* mask,                    // [frames, 2, height, width] 0 or 1
                                    Index frames, Index hints, Index height, Index width, Stream stream) {
    const RasterizeSparseFlow rasterize{positions, values, flow, mask, hints, height, width};
    return parallel_for(frames * 2 * height, width, stream, rasterize);
}

}  // namespace dispose_rt
