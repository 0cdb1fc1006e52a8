// The point feature pyramid, gathered from an index map: which group of joints, if any, sits in a cell.
//
// A level is the finest grid reduced by an integer factor: bilinear (half-pixel centres, no antialias), which for even
// factors is the mean of the two by two cells around the centre, then masked by the occupancy of each block's first
// cell (nearest). A factor of 4 therefore looks at cells 4i + 1 and 4i + 2 for values and at cell 4i for the mask.
#pragma once

#include "half.h"
#include "parallel_for.h"

namespace dispose_rt {

// Row: a band of channels of a frame, which share the search for occupied cells. Columns: cells of the level.
template <typename Stored>
struct ScatterPointFeatures {
    static constexpr Position kLanes = 16 / sizeof(Stored), kBand = 4;

    const Stored* features;     // [groups, channels]
    const std::int32_t* cells;  // [frames, height, width] group or -1, at the finest level
    Stored* level;              // [frames, channels, height / factor, width / factor]
    Index channels, height, width, factor;
    Index columns, plane;  // width / factor, and cells of the level

    // Nearly all cells are empty: clear everything, then place what there is.
    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        const auto [frame, band] = split(row, bands(channels));
        const Index first = band * Index{kBand}, count = first + kBand < channels ? Index{kBand} : channels - first;
        Stored* const planes = level + (frame * channels + first) * plane;
        DISPOSE_UNROLL for (Position i = 0; i < kBand; ++i) {
            if (i < count) clear(planes + i * plane, span);
        }
        const std::int32_t* const map = cells + frame * height * width;
        const auto [y, x] = split(span.begin, columns);
        BlockWalk walk{map + (y * width + x) * factor, x, columns, factor, width};
        span.each_where([&](Column) { return walk.next() >= 0; },
                        [&](Column cell) {
                            const Nested at = split(cell, columns);
                            const std::int32_t* const block = map + (at.outer * width + at.inner) * factor;
                            place(block, first, count, planes + cell);
                        });
    }

    // A cell of the channels of a band. All are read before the first is written, so that loads overlap.
    DISPOSE_TARGET void place(const std::int32_t* block, Index first, Index count, Stored* cell) const {
        Stored values[kBand];
        if (factor == 1) {
            const Stored* const group = features + *block * channels + first;
            DISPOSE_UNROLL for (Position i = 0; i < kBand; ++i) {
                if (i < count) values[i] = group[i];
            }
        } else {
            const Centre centre(block + (factor / 2 - 1) * (width + 1), width);
            DISPOSE_UNROLL for (Position i = 0; i < kBand; ++i) {
                if (i < count) store(centre.mean(features + first + i, channels), &values[i]);
            }
        }
        DISPOSE_UNROLL for (Position i = 0; i < kBand; ++i) {
            if (i < count) cell[i * plane] = values[i];
        }
    }

    // The two by two cells around the centre of a block.
    struct Centre {
        std::int32_t groups[4];

        DISPOSE_TARGET Centre(const std::int32_t* upper_left, Index width)
            : groups{upper_left[0], upper_left[1], upper_left[width], upper_left[width + 1]} {}

        DISPOSE_TARGET float mean(const Stored* channel, Index channels) const {
            float features[4];
            DISPOSE_UNROLL for (int i = 0; i < 4; ++i) {
                features[i] = groups[i] < 0 ? 0.0f : load(channel[groups[i] * channels]);
            }
            const float upper = features[0] + features[1], lower = features[2] + features[3];
            return 0.25f * (upper + lower);
        }
    };

    DISPOSE_HOST_AND_TARGET static Index bands(Index channels) { return ceil_div(channels, kBand); }

    // Steps from block to block, line by line, and reads the first cell of each.
    struct BlockWalk {
        const std::int32_t* block;
        Position x;
        Index columns, factor, width;

        DISPOSE_TARGET std::int32_t next() {
            const std::int32_t group = *block;
            block += factor;
            if (++x == columns) {
                x = 0;
                block += (factor - 1) * width;
            }
            return group;
        }
    };

    DISPOSE_TARGET static void clear(Stored* plane, Span<kLanes> span) {
        OutputLine<Stored, kLanes> line(plane, span);
        span.each([&](Column cell) { line[cell] = Stored{}; });
        line.store();
    }
};

// One level: the factor is 1 or even and divides height and width; group indices are below the rows of features.
template <typename Stored>
Work<ScatterPointFeatures<Stored>> scatter_level(const Stored* features, const std::int32_t* cells, Stored* level,
                                                 Index frames, Index channels, Index height, Index width,
                                                 Index factor) {
    using Body = ScatterPointFeatures<Stored>;
    const Index columns = width / factor, plane = (height / factor) * columns;
    return {frames * Body::bands(channels),
            plane,
            {features, cells, level, channels, height, width, factor, columns, plane}};
}

// All levels in one launch: the coarse ones are too small to fill a GPU on their own.
template <typename Stored>
Status scatter_point_features(const std::int32_t* cells,  // [frames, height, width] group or -1
                              const Stored* features_0, const Stored* features_1,  // [groups, channels_i]
                              const Stored* features_2, const Stored* features_3,  //
                              Stored* level_0,  // [frames, channels_0, height, width]
                              Stored* level_1,  // [frames, channels_1, height / 2, width / 2]
                              Stored* level_2,  // [frames, channels_2, height / 4, width / 4]
                              Stored* level_3,  // [frames, channels_3, height / 4, width / 4]
                              Index frames, Index height, Index width, Index channels_0, Index channels_1,
                              Index channels_2, Index channels_3, Stream stream) {
    const Work<ScatterPointFeatures<Stored>> levels[] = {
        scatter_level(features_0, cells, level_0, frames, channels_0, height, width, 1),
        scatter_level(features_1, cells, level_1, frames, channels_1, height, width, 2),
        scatter_level(features_2, cells, level_2, frames, channels_2, height, width, 4),
        scatter_level(features_3, cells, level_3, frames, channels_3, height, width, 4),
    };
    return parallel_for(levels, stream);
}

}  // namespace dispose_rt
