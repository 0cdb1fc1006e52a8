// A sparse flow of a few impulses, smoothed by a 199 x 199 Gaussian (sigma 20, sum 1, border reflect-101), in closed
// form: the Gaussian is separable, so an impulse spreads as (profile along y) x (profile along x). A tile works out the
// profiles of the impulses that reach it, then sums few products per pixel.
#pragma once

#include "tiles.h"

namespace dispose_rt {

constexpr Position kGaussianRadius = 99;
constexpr Position kGaussianTaps = 2 * kGaussianRadius + 1;

// exp(-0.5 (distance / 20)^2) at distance 0, 1, ..., divided by the sum over both sides. Written out, because exp()
// rounds differently from one library to the next.
DISPOSE_TABLE double kGaussian[kGaussianRadius + 1] = {
    0x1.46d050876623ap-6,  0x1.4667ccac940f3p-6,  0x1.452f097c857d7p-6,  0x1.43285d98b4779p-6,  0x1.4057a66f9f8ffp-6,
    0x1.3cc23bf5a671fp-6,  0x1.386edfc15fe3cp-6,  0x1.3365a7d614a81p-6,  0x1.2dafe5797ef51p-6,  0x1.2758088255488p-6,
    0x1.20697f9b2a3cdp-6,  0x1.18f0960082ee2p-6,  0x1.10fa4f497dd7dp-6,  0x1.089441cfdb354p-6,  0x1.ff98e09d4002ap-7,
    0x1.ed62469bd693ap-7,  0x1.daa185de06a8cp-7,  0x1.c773634a8ee11p-7,  0x1.b3f450bf9d776p-7,  0x1.a0402938a84bfp-7,
    0x1.8c71f19df176bp-7,  0x1.78a39ef777511p-7,  0x1.64ede29d5d521p-7,  0x1.5167fcde97919p-7,  0x1.3e2796749a432p-7,
    0x1.2b40a0f8c9062p-7,  0x1.18c53e6f1d8f4p-7,  0x1.06c5afd9a94f5p-7,  0x1.eaa095559e838p-8,  0x1.c8e2e9a1c27bcp-8,
    0x1.a8674dfb3ca14p-8,  0x1.893ee96e772dap-8,  0x1.6b77335ec4fb3p-8,  0x1.4f1a179e0fa9dp-8,  0x1.342e22b86e7fcp-8,
    0x1.1ab6b531ae448p-8,  0x1.02b43c6dbb00bp-8,  0x1.d848dffcdb1d3p-9,  0x1.ae052431d1a3dp-9,  0x1.868f64039859cp-9,
    0x1.61d5dea29bf64p-9,  0x1.3fc37a0c10d88p-9,  0x1.204046ec2b3bdp-9,  0x1.033200926b0fbp-9,  0x1.d0f90f0d59d4fp-10,
    0x1.a004ab10daa45p-10, 0x1.7349d3f902298p-10, 0x1.4a8a5c0e63843p-10, 0x1.25879f9029c96p-10, 0x1.040328c24d827p-10,
    0x1.cb7e828ba8bdfp-11, 0x1.94fee18bdd829p-11, 0x1.6411d2a44101p-11,  0x1.3845c40105086p-11, 0x1.112dc156bacefp-11,
    0x1.dcc3cf2bce39cp-12, 0x1.9eff763e680c5p-12, 0x1.6854c5e6f8d65p-12, 0x1.381596f762ceap-12, 0x1.0d9f672981317p-12,
    0x1.d0b69a33da593p-13, 0x1.8f7b96d30a716p-13, 0x1.568d1038cfc2cp-13, 0x1.24ffda1be4e6dp-13, 0x1.f3fad80fd2996p-14,
    0x1.a985c24d0e8e5p-14, 0x1.693fc6a1f83d1p-14, 0x1.31eb1090beccfp-14, 0x1.026a4e511a4e7p-14, 0x1.b37cad8250637p-15,
    0x1.6e07a6dfb9c75p-15, 0x1.32e1ecb344d15p-15, 0x1.00a683202e247p-15, 0x1.ac3597013b445p-16, 0x1.6454ed8845b3p-16,
    0x1.27c7653f4c5c3p-16, 0x1.e9ce54d93ef58p-17, 0x1.948b251ff2526p-17, 0x1.4d49ee490d688p-17, 0x1.11e623a7d376ep-17,
    0x1.c10f5d06aebd9p-18, 0x1.6f33304e9e7d4p-18, 0x1.2b833ac4f234fp-18, 0x1.e7627ab93021dp-19, 0x1.8b8f7c382445dp-19,
    0x1.403c0bf3ccddp-19,  0x1.029b01c9886c9p-19, 0x1.a0a1882b81f44p-20, 0x1.4ec5bc0b41a2p-20,  0x1.0c5355cb6e868p-20,
    0x1.ad0f81059297p-21,  0x1.562f0ee045483p-21, 0x1.1037733a4245ap-21, 0x1.b007b49b2d186p-22, 0x1.55fa4481eea4fp-22,
    0x1.0e05111a17d47p-22, 0x1.a9576e5fc6888p-23, 0x1.4e2ae2f7b33c3p-23, 0x1.05e1afa5a476cp-23, 0x1.99708fb38924cp-24,
};

// What the pixel at `at` receives from an impulse at `from` along an axis of `length` pixels. Reflect-101 repeats the
// axis with period 2 (length - 1), once as it is and once mirrored at 0; every copy of the impulse that the taps reach
// adds its share. No copy is nearer than the impulse itself. The end pixels are their own mirror image and count once.
DISPOSE_TARGET inline double reflected_gaussian(Position at, Position from, Position length) {
    if (length == 1) return 1.0;
    const bool own_mirror = from == 0 || from == length - 1;
    const Position distance = from < at ? at - from : from - at;
    if (length > kGaussianRadius + 1) {  // two copies of one kind are more than the reach apart
        const Position end = length - 1;
        const Position mirrored = at < end - from ? at + from : (end - at) + (end - from);
        return kGaussian[distance] + (own_mirror || mirrored > kGaussianRadius ? 0.0 : kGaussian[mirrored]);
    }
    const Position period = 2 * (length - 1);
    double weight = 0;
    for (Position sign = 1; sign >= (own_mirror ? 1 : -1); sign -= 2) {
        Position copy = sign * from - at;  // the copies lie at copy + n * period
        while (copy - period >= -kGaussianRadius) copy -= period;
        while (copy < -kGaussianRadius) copy += period;
        for (; copy <= kGaussianRadius; copy += period) weight += kGaussian[copy < 0 ? -copy : copy];
    }
    return weight;
}

// A tile: an area of a frame, both channels, and up to kTogether impulses. Those whose taps do not reach a span are
// skipped: they would add zeros.
template <bool kAdds>
struct GaussianSplat {
    static constexpr Position kLanes = 4, kBand = 4, kTogether = 32;
    static constexpr Position kTileColumns = kTileSpans * kSpanColumns<kLanes>, kTileLines = kTileBands * kBand;

    using Lines = OutputLines<float, kLanes, kBand>;

    const std::int32_t* positions;  // [frames, impulses, 2] x, y in pixels
    const float* values;            // [frames, impulses, 2]
    float* flow;                    // [frames, 2, height, width]
    Position impulses, height, width;
    Position first, tiles_down, tiles_across;  // the first of the impulses; tiles of a frame

    struct Range {
        Position begin, end;
    };

    struct Corner {
        Position y, x;
    };

    using AlongX = TileLine<kTileColumns, kGaussianTaps>;
    using AlongY = TileLine<kTileLines, kGaussianTaps>;

    struct Shared {
        std::uint32_t found;  // which of the impulses reach the tile
        float value_x[kTogether], value_y[kTogether];
        AlongX along_x[kTogether];
        AlongY along_y[kTogether];
    };

    DISPOSE_TARGET void operator()(Position tile, const Team& team, Shared& shared) const {
        const Nested row = split(tile, tiles_across), at = split(row.outer, tiles_down);
        const Range lines = part(at.inner * kTileLines, kTileLines, height);
        const Range columns = part(row.inner * kTileColumns, kTileColumns, width);
        const Index frame = at.outer;
        team.lead(shared.found, [&] { return find(team, positions + 2 * frame * impulses, lines, columns); });
        team.wait();
        const std::uint32_t found = shared.found;
        if (kAdds && found == 0) return;
        each_bit(found, [&](Position entry) { prepare(team, frame, entry, lines, columns, shared); });
        team.wait();
        team.each_cell([&](Position band_index, Position span_index) {
            const Range band = part(lines.begin + band_index * kBand, kBand, lines.end);
            const Range span =
                part(columns.begin + span_index * kSpanColumns<kLanes>, kSpanColumns<kLanes>, columns.end);
            if (band.begin >= band.end || span.begin >= span.end) return;
            add(frame, {band.begin, band.end}, {span.begin, span.end}, {lines.begin, columns.begin}, shared);
        });
    }

    // Sums the impulses in the spans of a band's lines.
    DISPOSE_TARGET void add(Index frame, Span<kBand> band, Span<kLanes> span, Corner tile, const Shared& shared) const {
        const Index plane = Index{height} * width;
        float* const top = flow + 2 * frame * plane + Index{band.begin} * width;
        Lines lines_x(top, width, band, span), lines_y(top + plane, width, band, span);
        start(lines_x);
        start(lines_y);
        each_bit(shared.found, [&](Position entry) {
            const TileLinePart<kLanes, AlongX> along_x(shared.along_x[entry], tile.x, span);
            const TileLinePart<kBand, AlongY> along_y(shared.along_y[entry], tile.y, band);
            const float value_x = shared.value_x[entry], value_y = shared.value_y[entry];
            along_y.each([&](Column y, float weight) {
                // One channel at a time: lines of both lie at the same offset in their pages, which stalls mixed
                // writes.
                const float peak_x = weight * value_x, peak_y = weight * value_y;
                along_x.each([&](Column x, float share) { lines_x.at(y, x) += peak_x * share; });
                along_x.each([&](Column x, float share) { lines_y.at(y, x) += peak_y * share; });
            });
        });
        lines_x.store();
        lines_y.store();
    }

    DISPOSE_TARGET static void start(Lines& lines) {
        if constexpr (kAdds) {
            lines.load();
        } else {
            lines.clear();
        }
    }

    // From `begin` on, so many or what is left up to `end`.
    DISPOSE_TARGET static Range part(Position begin, Position count, Position end) {
        return {begin, end - begin > count ? begin + count : end};
    }

    // Which of the impulses reach the tile, as bits. Impulses are assigned, not added: a later one at the same pixel
    // takes its place.
    DISPOSE_TARGET std::uint32_t find(const Team& team, const std::int32_t* centres, Range lines, Range columns) const {
        std::uint32_t found = team.find(together(first), [&](Position i) {
            const Position x = centres[2 * (first + i)], y = centres[2 * (first + i) + 1];
            return reaches(y, height, lines) & reaches(x, width, columns);
        });
        each_bit(found, [&](Position i) {
            const Position x = centres[2 * (first + i)], y = centres[2 * (first + i) + 1];
            DISPOSE_NO_UNROLL for (Position later = first + i + 1; later < impulses; later += kTogether) {
                const std::uint32_t same = team.find(together(later), [&](Position j) {
                    return (centres[2 * (later + j)] == x) & (centres[2 * (later + j) + 1] == y);
                });
                if (same != 0) found &= ~(std::uint32_t{1} << i);
            }
        });
        return found;
    }

    DISPOSE_TARGET Position together(Position from) const {
        return impulses - from < kTogether ? impulses - from : kTogether;
    }

    // Whether the taps of an impulse inside an axis touch the range. No difference overflows: both sides are >= 0.
    DISPOSE_TARGET static bool reaches(Position centre, Position length, Range range) {
        return centre >= 0 && centre < length && centre - range.begin >= -kGaussianRadius &&
               centre - range.end < kGaussianRadius;
    }

    // The value of an impulse, and its profiles: what each line and column of the tile receives of it.
    DISPOSE_TARGET void prepare(const Team& team, Index frame, Position entry, Range lines, Range columns,
                                Shared& shared) const {
        const Index index = 2 * (frame * impulses + first + entry);
        const Position x = positions[index], y = positions[index + 1];
        constexpr Position kItems = AlongX::kItems > AlongY::kItems ? AlongX::kItems : AlongY::kItems;
        team.each(2 * kItems, static_cast<unsigned>(entry * 2 * kItems), [&](Position i) {
            const bool across = i < kItems;
            const Position item = across ? i : i - kItems, centre = across ? x : y, length = across ? width : height;
            const Range side = across ? columns : lines;
            const Position begin = centre - kGaussianRadius, end = centre + kGaussianRadius + 1;
            const Range reach{begin > side.begin ? begin : side.begin, end < side.end ? end : side.end};
            const auto receive = [&](Position at) {
                return static_cast<float>(reflected_gaussian(at, centre, length));
            };
            if (across && item < AlongX::kItems)
                shared.along_x[entry].set(item, side.begin, reach.begin, reach.end, receive);
            if (!across && item < AlongY::kItems)
                shared.along_y[entry].set(item, side.begin, reach.begin, reach.end, receive);
            if (i == 0) shared.value_x[entry] = values[index];
            if (i == 1) shared.value_y[entry] = values[index + 1];
        });
    }
};

// Queues the impulses from `first` on, up to kTogether of them.
template <bool kAdds>
Status splat_impulses(const std::int32_t* positions, const float* values, float* flow, Index frames, Index impulses,
                      Index height, Index width, Index first, Stream stream) {
    using Splat = GaussianSplat<kAdds>;
    const Index down = ceil_div(height, Splat::kTileLines), across = ceil_div(width, Splat::kTileColumns);
    if (across != 0 && frames * down > kMaxPosition / across) return kTooLarge;
    const Splat splat{positions,
                      values,
                      flow,
                      static_cast<Position>(impulses),
                      static_cast<Position>(height),
                      static_cast<Position>(width),
                      static_cast<Position>(first),
                      static_cast<Position>(down),
                      static_cast<Position>(across)};
    return parallel_for_tiles(frames * down * across, Splat::kTileLines * width, stream, splat);
}

// Positions outside the image are ignored; of several impulses at one pixel the last one counts. Any number of impulses
// is summed in order, a launch for every kTogether of them.
inline Status splat_gaussian_flow(const std::int32_t* positions,  // [frames, impulses, 2] x, y in pixels
                                  const float* values,            // [frames, impulses, 2] x, y
                                  float* flow,                    // [frames, 2, height, width]
                                  Index frames, Index impulses, Index height, Index width, Stream stream) {
    constexpr Index kLongest = kMaxPosition - kGaussianTaps, kTogether = GaussianSplat<true>::kTogether;
    if (impulses > kLongest || height > kLongest || width > kLongest) return kTooLarge;
    Status error = splat_impulses<false>(positions, values, flow, frames, impulses, height, width, 0, stream);
    for (Index first = kTogether; first < impulses && error == nullptr; first += kTogether) {
        error = splat_impulses<true>(positions, values, flow, frames, impulses, height, width, first, stream);
    }
    return error;
}

}  // namespace dispose_rt
