// Sparse motion hints written into otherwise empty maps, with a mask of where they are.
#pragma once

#include "parallel_for.h"

namespace dispose_rt {

// Row: a line of one channel of a frame. Columns: pixels along x.
struct RasterizeSparseFlow {
    const std::int32_t* positions;  // [hints, 2] x, y in pixels, the same in every frame
    const float* values;            // [frames, hints, 2] x, y
    float* flow;                    // [frames, 2, height, width]
    float* mask;                    // [frames, 2, height, width]
    Index hints, height, width;

    DISPOSE_TARGET void operator()(Index row, Index begin, Index end) const {
        const Index y = row % height, channel = row / height % 2, frame = row / height / 2;
        for (Index x = begin; x < end; ++x) flow[row * width + x] = mask[row * width + x] = 0;
        for (Index hint = 0; hint < hints; ++hint) {  // in order: the last writer wins
            const Index x = positions[2 * hint];
            if (positions[2 * hint + 1] != y || x < begin || x >= end) continue;
            flow[row * width + x] = values[2 * (frame * hints + hint) + channel];
            mask[row * width + x] = 1;
        }
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
