// A sparse flow of a few impulses, smoothed by a 199 x 199 Gaussian (sigma 20, sum 1, border reflect-101), in closed
// form: the Gaussian is separable, so an impulse spreads as (profile along y) x (profile along x). Two passes: profiles
// of every impulse, then a weighted sum of few products per row.
#pragma once

#include <cmath>

#include "parallel_for.h"

namespace dispose_rt {

constexpr Position kGaussianRadius = 99;
constexpr Position kGaussianTaps = 2 * kGaussianRadius + 1;
constexpr double kGaussianSigma = 20.0;

// Weights of the taps at distance 0, 1, ... of a Gaussian whose taps on both sides sum to 1.
struct GaussianTaps {
    double weights[kGaussianRadius + 1];
};

inline GaussianTaps gaussian_taps() {
    GaussianTaps taps;
    double sum = 0;
    for (Position distance = 0; distance <= kGaussianRadius; ++distance) {
        const double scaled = static_cast<double>(distance) / kGaussianSigma;
        taps.weights[distance] = std::exp(-0.5 * scaled * scaled);
        sum += (distance == 0 ? 1 : 2) * taps.weights[distance];
    }
    for (double& weight : taps.weights) weight /= sum;
    return taps;
}

// What the pixel at `at` receives from an impulse at `from` along an axis of `length` pixels. Reflect-101 repeats the
// axis with period 2 (length - 1), once as it is and once mirrored at 0; every copy of the impulse that the taps reach
// adds its share. No copy is nearer than the impulse itself. The end pixels are their own mirror image and count once.
DISPOSE_TARGET inline double reflected_gaussian(const GaussianTaps& taps, Index at, Index from, Index length) {
    if (length == 1) return 1.0;
    const Index period = 2 * (length - 1);
    const bool own_mirror = from == 0 || from == length - 1;
    double weight = 0;
    for (Index sign = 1; sign >= (own_mirror ? 1 : -1); sign -= 2) {
        Index distance = sign * from - at;  // the copies lie at distance + n * period
        while (distance - period >= -kGaussianRadius) distance -= period;
        while (distance < -kGaussianRadius) distance += period;
        for (; distance <= kGaussianRadius; distance += period) {
            weight += taps.weights[distance < 0 ? -distance : distance];
        }
    }
    return weight;
}

// Row: an impulse of a frame. Columns: the pixels that the taps reach from it, along x and then along y.
struct GaussianProfiles {
    static constexpr Position kLanes = 1;

    const std::int32_t* positions;  // [frames, impulses, 2] x, y in pixels
    float* profiles;                // [frames, impulses, 2 (x, y), 199], centred on the impulse
    Index impulses, height, width;
    GaussianTaps taps;

    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        const Index x = positions[2 * row], y = positions[2 * row + 1];
        const bool active = 0 <= x && x < width && 0 <= y && y < height && !overwritten(row);
        OutputLine<float, kLanes> line(profiles + Index{row} * 2 * kGaussianTaps, span);
        span.each([&](Column column) {
            const bool along_x = column < kGaussianTaps;
            const Index from = along_x ? x : y, length = along_x ? width : height;
            const Index at = from + column % kGaussianTaps - kGaussianRadius;
            const bool inside = active && 0 <= at && at < length;
            line[column] = static_cast<float>(inside ? reflected_gaussian(taps, at, from, length) : 0.0);
        });
        line.store();
    }

    // Impulses are assigned, not added: a later one at the same pixel takes its place.
    DISPOSE_TARGET bool overwritten(Position row) const {
        bool replaced = false;
        const Index frame_end = (split(row, impulses).outer + 1) * impulses;
        for (Index later = row + 1; later < frame_end; ++later) {
            const bool same_x = positions[2 * later] == positions[2 * row];
            replaced |= same_x & (positions[2 * later + 1] == positions[2 * row + 1]);  // no branch: loads overlap
        }
        return replaced;
    }
};

// Row: a band of lines of a frame, both channels: impulses are looked up once for all of them. Those whose taps do not
// reach the span are skipped: they would add zeros. Columns: pixels along x.
struct GaussianSplat {
    static constexpr Position kLanes = 4, kBand = 4;

    const std::int32_t* positions;  // [frames, impulses, 2] x, y in pixels
    const float* values;            // [frames, impulses, 2]
    const float* profiles;          // [frames, impulses, 2 (x, y), 199]
    float* flow;                    // [frames, 2, height, width]
    Index impulses, height, width;

    DISPOSE_HOST_AND_TARGET static Index bands(Index height) { return ceil_div(height, kBand); }

    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        const Nested at = split(row, bands(height));
        const Index frame = at.outer;
        const Position top = at.inner * kBand;
        const Position rows = static_cast<Position>(height), columns = static_cast<Position>(width);
        const Position lines = rows - top < kBand ? rows - top : kBand;
        float* const plane_x = flow + 2 * frame * height * width;
        float* const plane_y = plane_x + height * width;
        OutputLine<float, kLanes> lines_x[kBand], lines_y[kBand];
        DISPOSE_UNROLL for (Position i = 0; i < kBand; ++i) {
            if (i >= lines) break;
            clear(lines_x[i] = {plane_x + (top + i) * width, span}, span);
            clear(lines_y[i] = {plane_y + (top + i) * width, span}, span);
        }
        const std::int32_t* const centres = positions + 2 * frame * impulses;
        each_index_where(
            static_cast<Position>(impulses),
            [&](Position i) { return reaches(centres[2 * i + 1], rows, top, top + lines); },
            [&](Position i) {
                const Position x = centres[2 * i], y = centres[2 * i + 1];
                if (!reaches(x, columns, span.begin, span.end)) return;
                const Index impulse = frame * impulses + i;
                const float value_x = values[2 * impulse], value_y = values[2 * impulse + 1];
                const PlacedLine<float, kLanes> along_x(profiles + 2 * impulse * kGaussianTaps, x - kGaussianRadius,
                                                        kGaussianTaps, span);
                const Position tap = top - y + kGaussianRadius;  // of the band's first line
                const float* const along_y = profiles + (2 * impulse + 1) * kGaussianTaps + tap;
                DISPOSE_UNROLL for (Position line = 0; line < kBand; ++line) {
                    if (tap + line < 0 || tap + line >= kGaussianTaps || line >= lines) continue;
                    // One channel at a time: lines of both lie at the same offset in their pages, which stalls mixed
                    // writes.
                    add(lines_x[line], along_y[line] * value_x, along_x);
                    add(lines_y[line], along_y[line] * value_y, along_x);
                }
            });
        DISPOSE_UNROLL for (Position i = 0; i < kBand; ++i) {
            if (i >= lines) break;
            lines_x[i].store();
            lines_y[i].store();
        }
    }

    // Whether the taps of an impulse inside an axis touch begin..end. No difference overflows: both sides are >= 0.
    DISPOSE_TARGET static bool reaches(Position centre, Position length, Position begin, Position end) {
        return centre >= 0 && centre < length && centre - begin >= -kGaussianRadius && centre - end < kGaussianRadius;
    }

    DISPOSE_TARGET static void clear(OutputLine<float, kLanes>& line, Span<kLanes> span) {
        span.each([&](Column x) { line[x] = 0; });
    }

    DISPOSE_TARGET static void add(OutputLine<float, kLanes>& line, float value,
                                   const PlacedLine<float, kLanes>& profile) {
        profile.each([&](Column x, float weight) { line[x] += value * weight; });
    }
};

// Positions outside the image are ignored; of several impulses at one pixel the last one counts.
inline Status splat_gaussian_flow(const std::int32_t* positions,  // [frames, impulses, 2] x, y in pixels
                                  const float* values,            // [frames, impulses, 2] x, y
                                  float* profiles,                // [frames, impulses, 2, 199] scratch
                                  float* flow,                    // [frames, 2, height, width]
                                  Index frames, Index impulses, Index height, Index width, Stream stream) {
    if (height > kMaxPosition - kGaussianTaps || width > kMaxPosition - kGaussianTaps) return kTooLarge;
    const GaussianProfiles measure{positions, profiles, impulses, height, width, gaussian_taps()};
    if (const Status error = parallel_for(frames * impulses, 2 * kGaussianTaps, stream, measure)) return error;
    const GaussianSplat splat{positions, values, profiles, flow, impulses, height, width};
    return parallel_for(frames * GaussianSplat::bands(height), width, stream, splat);
}

}  // namespace dispose_rt
