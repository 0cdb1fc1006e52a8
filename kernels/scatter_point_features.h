// One level of the point feature pyramid, gathered from an index map: which group of joints, if any, sits in a cell.
//
// A level is the finest grid reduced by an integer factor: bilinear (half-pixel centres, no antialias), which for even
// factors is the mean of the two by two cells around the centre, then masked by the occupancy of each block's first
// cell (nearest). A factor of 4 therefore looks at cells 4i + 1 and 4i + 2 for values and at cell 4i for the mask.
#pragma once

#include "half.h"
#include "parallel_for.h"

namespace dispose_rt {

// Row: a line of one channel of a frame. Columns: cells of the level along x.
template <typename Stored>
struct ScatterPointFeatures {
    const Stored* features;     // [groups, channels]
    const std::int32_t* cells;  // [frames, height, width] group or -1, at the finest level
    Stored* level;              // [frames, channels, height / factor, width / factor]
    Index channels, height, width, factor;

    DISPOSE_TARGET void operator()(Index row, Index begin, Index end) const {
        const Index lines = height / factor;
        const Index y = row % lines, channel = row / lines % channels, frame = row / lines / channels;
        const std::int32_t* const blocks = cells + (frame * height + y * factor) * width;
        for (Index x = begin; x < end; ++x) {
            const std::int32_t* const block = blocks + x * factor;
            store(*block < 0 ? 0.0f : reduced(block, channel), level + row * (width / factor) + x);
        }
    }

    DISPOSE_TARGET float reduced(const std::int32_t* block, Index channel) const {
        if (factor == 1) return feature(*block, channel);
        const std::int32_t* const centre = block + (factor / 2 - 1) * (width + 1);
        const float upper = feature(centre[0], channel) + feature(centre[1], channel);
        const float lower = feature(centre[width], channel) + feature(centre[width + 1], channel);
        return 0.25f * (upper + lower);
    }

    DISPOSE_TARGET float feature(std::int32_t group, Index channel) const {
        return group < 0 ? 0.0f : load(features[group * channels + channel]);
    }
};

// The factor is 1 or even and divides height and width; group indices are below the number of rows of features.
template <typename Stored>
Status scatter_point_features(const Stored* features,     // [groups, channels]
                              const std::int32_t* cells,  // [frames, height, width] group or -1
                              Stored* level,              // [frames, channels, height / factor, width / factor]
                              Index frames, Index channels, Index height, Index width, Index factor, Stream stream) {
    const ScatterPointFeatures<Stored> scatter{features, cells, level, channels, height, width, factor};
    return parallel_for(frames * channels * (height / factor), width / factor, stream, scatter);
}

}  // namespace dispose_rt
