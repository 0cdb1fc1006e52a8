// Adds one tile's noise prediction to the clip's weighted sum. A frame sits in at most one weighted slot of a tile, so
// every element of the sums has one writer.
#pragma once

#include "float_bits.h"
#include "parallel_for.h"

namespace dispose_rt {

// Row: a slot of one guidance half. Columns: elements of a frame.
struct AccumulateTile {
    static constexpr Position kLanes = 4;

    const float* noise_pred;          // [2, slots, elements]
    const std::int32_t* slot_frames;  // [slots] frame of the clip
    const float* slot_weights;        // [slots]; a slot of weight 0 is dropped, whatever it holds
    float* sums;                      // [2, frames, elements]
    std::int32_t* nonfinite;          // [1]
    Index slots, frames, elements;

    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        const auto [half, slot] = split(row, slots);
        const Index frame = slot_frames[slot];
        const float weight = slot_weights[slot];
        if (weight == 0 || frame < 0 || frame >= frames) return;
        const InputLine<float, kLanes> source(noise_pred + row * elements, span);
        UpdatedLine<float, kLanes> target(sums + (half * frames + frame) * elements, span);
        std::uint32_t found = 0;
        span.each([&](Column element) {
            found |= nonfinite_bit(source[element]);
            target[element] += weight * source[element];
        });
        target.store();
        if (found != 0) raise_flag(nonfinite);
    }
};

// A slot whose frame does not exist is dropped.
inline Status accumulate_tile(const float* noise_pred,          // [2, slots, elements]
                              const std::int32_t* slot_frames,  // [slots]
                              const float* slot_weights,        // [slots]
                              float* sums,                      // [2, frames, elements], added to
                              std::int32_t* nonfinite,          // [1], set to 1 where a value that counts is not finite
                              Index slots, Index frames, Index elements, Stream stream) {
    const AccumulateTile accumulate{noise_pred, slot_frames, slot_weights, sums, nonfinite, slots, frames, elements};
    return parallel_for(2 * slots, elements, stream, accumulate);
}

}  // namespace dispose_rt
