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
    static constexpr Position kLanes = 16 / sizeof(Stored), kBand = kBandLines<Stored>;

    const Stored* features;     // [groups, channels]
    const std::int32_t* cells;  // [frames, height, width] group or -1, at the finest level
    Stored* level;              // [frames, channels, height / factor, width / factor]
    Position channels, height, width, factor;
    Position columns, plane;  // width / factor, and cells of the level

    // Nearly all cells are empty: clear everything, then place what there is.
    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        const auto [frame, index] = split(row, bands(channels));
        const Position first = index * kBand;
        const Span<kBand> band{first, channels - first > kBand ? first + kBand : channels};
        Stored* const planes = level + (Index{frame} * channels + first) * plane;
        OutputLines<Stored, kLanes, kBand> lines(planes, plane, band, span);
        lines.clear();
        lines.store();
        const std::int32_t* const map = cells + Index{frame} * height * width;
        const auto [y, x] = split(span.begin, columns);
        BlockWalk walk{map + (y * width + x) * factor, x, columns, factor, (factor - 1) * width};
        const auto groups = gather(span, [&](Column) { return walk.next(); });
        span.each_where([&](Column cell) { return groups[cell] >= 0; },
                        [&](Column cell) {
                            const Nested at = split(cell, columns);
                            place(map + (at.outer * width + at.inner) * factor, band, planes + cell);
                        });
    }

    // Writes the cell of a block in every plane of a band.
    DISPOSE_TARGET void place(const std::int32_t* block, Span<kBand> band, Stored* cell) const {
        if (factor == 1) {
            const InputLine<Stored, kBand> group(features + Index{*block} * channels, band);
            band.each([&](Column channel) { cell[Index{channel - band.begin} * plane] = group[channel]; });
            return;
        }
        const Centre centre(block + (factor / 2 - 1) * (width + 1), width);
        if (centre.empty()) return;  // the mean is 0, as cleared
        DISPOSE_NO_UNROLL for (Position channel = band.begin; channel < band.end; ++channel) {
            store(centre.mean(features + channel, channels), cell);
            cell += plane;
        }
    }

    // The two by two cells around the centre of a block.
    struct Centre {
        std::int32_t groups[4];

        DISPOSE_TARGET Centre(const std::int32_t* upper_left, Position width)
            : groups{upper_left[0], upper_left[1], upper_left[width], upper_left[width + 1]} {}

        // Whether all groups are negative.
        DISPOSE_TARGET bool empty() const { return (groups[0] & groups[1] & groups[2] & groups[3]) < 0; }

        DISPOSE_TARGET float mean(const Stored* channel, Index channels) const {
            float features[4];
            DISPOSE_UNROLL for (int i = 0; i < 4; ++i) {
                features[i] = groups[i] < 0 ? 0.0f : load(channel[groups[i] * channels]);
            }
            const float upper = features[0] + features[1], lower = features[2] + features[3];
            return 0.25f * (upper + lower);
        }
    };

    DISPOSE_HOST_AND_TARGET static Position bands(Position channels) {
        return static_cast<Position>(ceil_div(channels, kBand));
    }

    // Steps from block to block, line by line, and reads the first cell of each.
    struct BlockWalk {
        const std::int32_t* block;
        Position x, columns, factor, lines_between;  // lines of a block that are passed over, in cells

        DISPOSE_TARGET std::int32_t next() {
            const std::int32_t group = *block;
            block += factor;
            if (++x == columns) {
                x = 0;
                block += lines_between;
            }
            return group;
        }
    };
};

// One level: the factor is 1 or even and divides height and width; group indices are below the rows of features.
template <typename Stored>
Work<ScatterPointFeatures<Stored>> scatter_level(const Stored* features, const std::int32_t* cells, Stored* level,
                                                 Index frames, Position channels, Position height, Position width,
                                                 Position factor) {
    using Body = ScatterPointFeatures<Stored>;
    const Position columns = width / factor, plane = (height / factor) * columns;
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
    for (const Index size : {height, width, channels_0, channels_1, channels_2, channels_3}) {
        if (size > kMaxPosition) return kTooLarge;
    }
    if (width != 0 && height > kMaxPosition / width) return kTooLarge;
    const Position rows = static_cast<Position>(height), columns = static_cast<Position>(width);
    const auto level = [&](const Stored* features, Stored* target, Index channels, Position factor) {
        return scatter_level(features, cells, target, frames, static_cast<Position>(channels), rows, columns, factor);
    };
    const Work<ScatterPointFeatures<Stored>> levels[] = {
        level(features_0, level_0, channels_0, 1),
        level(features_1, level_1, channels_1, 2),
        level(features_2, level_2, channels_2, 4),
        level(features_3, level_3, channels_3, 4),
    };
    return parallel_for(levels, stream);
}

}  // namespace dispose_rt
