// A sparse flow of a few impulses, smoothed by a 199 x 199 Gaussian (sigma 20, sum 1, border reflect-101), in closed
// form: the Gaussian is separable, so an impulse spreads as (profile along y) x (profile along x). Two passes: profiles
// of every impulse, then a weighted sum of few products per row.
#pragma once

#include <cmath>

#include "parallel_for.h"

namespace dispose_rt {

constexpr Index kGaussianRadius = 99;
constexpr Index kGaussianTaps = 2 * kGaussianRadius + 1;
constexpr double kGaussianSigma = 20.0;

// Weights of the taps at distance 0, 1, ... of a Gaussian whose taps on both sides sum to 1.
struct GaussianTaps {
    double weights[kGaussianRadius + 1];
};

inline GaussianTaps gaussian_taps() {
    GaussianTaps taps;
    double sum = 0;
    for (Index distance = 0; distance <= kGaussianRadius; ++distance) {
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
    const std::int32_t* positions;  // [frames, impulses, 2] x, y in pixels
    float* profiles;                // [frames, impulses, 2 (x, y), 199], centred on the impulse
    Index impulses, height, width;
    GaussianTaps taps;

    DISPOSE_TARGET void operator()(Index row, Index begin, Index end) const {
        const Index x = positions[2 * row], y = positions[2 * row + 1];
        const bool active = 0 <= x && x < width && 0 <= y && y < height && !overwritten(row);
        for (Index column = begin; column < end; ++column) {
            const bool along_x = column < kGaussianTaps;
            const Index from = along_x ? x : y, length = along_x ? width : height;
            const Index at = from + column % kGaussianTaps - kGaussianRadius;
            const bool inside = active && 0 <= at && at < length;
            const double weight = inside ? reflected_gaussian(taps, at, from, length) : 0.0;
            profiles[row * 2 * kGaussianTaps + column] = static_cast<float>(weight);
        }
    }

    // Impulses are assigned, not added: a later one at the same pixel takes its place.
    DISPOSE_TARGET bool overwritten(Index row) const {
        const Index frame_end = (row / impulses + 1) * impulses;
        for (Index later = row + 1; later < frame_end; ++later) {
            if (positions[2 * later] == positions[2 * row] && positions[2 * later + 1] == positions[2 * row + 1]) {
                return true;
            }
        }
        return false;
    }
};

// Row: a line of a frame, both channels. Columns: pixels along x.
struct GaussianSplat {
    const std::int32_t* positions;  // [frames, impulses, 2] x, y in pixels
    const float* values;            // [frames, impulses, 2]
    const float* profiles;          // [frames, impulses, 2 (x, y), 199]
    float* flow;                    // [frames, 2, height, width]
    Index impulses, height, width;

    DISPOSE_TARGET void operator()(Index row, Index begin, Index end) const {
        const Index frame = row / height, y = row % height;
        float* const flow_x = flow + (2 * frame * height + y) * width;
        float* const flow_y = flow_x + height * width;
        for (Index x = begin; x < end; ++x) flow_x[x] = 0;
        for (Index x = begin; x < end; ++x) flow_y[x] = 0;
        for (Index impulse = frame * impulses; impulse < (frame + 1) * impulses; ++impulse) {
            const Index left = positions[2 * impulse] - kGaussianRadius;
            const Index top = positions[2 * impulse + 1] - kGaussianRadius;
            if (y < top || y >= top + kGaussianTaps) continue;
            const float* const along_x = profiles + impulse * 2 * kGaussianTaps;
            const float weight = along_x[kGaussianTaps + y - top];
            const float value_x = weight * values[2 * impulse], value_y = weight * values[2 * impulse + 1];
            const Index first = left > begin ? left : begin;
            const Index last = left + kGaussianTaps < end ? left + kGaussianTaps : end;
            // One channel at a time: lines of both lie at the same offset in their pages, which stalls mixed writes.
            for (Index x = first; x < last; ++x) flow_x[x] += value_x * along_x[x - left];
            for (Index x = first; x < last; ++x) flow_y[x] += value_y * along_x[x - left];
        }
    }
};

// Positions outside the image are ignored; of several impulses at one pixel the last one counts.
inline Status splat_gaussian_flow(const std::int32_t* positions,  // [frames, impulses, 2] x, y in pixels
                                  const float* values,            // [frames, impulses, 2] x, y
                                  float* profiles,                // [frames, impulses, 2, 199] scratch
                                  float* flow,                    // [frames, 2, height, width]
                                  Index frames, Index impulses, Index height, Index width, Stream stream) {
    const GaussianProfiles measure{positions, profiles, impulses, height, width, gaussian_taps()};
    if (const Status error = parallel_for(frames * impulses, 2 * kGaussianTaps, stream, measure)) return error;
    const GaussianSplat splat{positions, values, profiles, flow, impulses, height, width};
    return parallel_for(frames * height, width, stream, splat);
}

}  // namespace dispose_rt
