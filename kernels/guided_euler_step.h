// Weighted mean over tiles, classifier-free guidance, one Euler step with v-prediction and the next step's input
// scaling, in one pass. Operations are ordered as in the reference and never fused, so FP32 results have its bits.
#pragma once

#include <cmath>

#include "parallel_for.h"

namespace dispose_rt {

// Row: a frame. Columns: elements of a frame.
struct GuidedEulerStep {
    static constexpr Position kLanes = 4;

    const float* latents;        // [frames, elements]
    const float* sums;           // [2, frames, elements] unconditional, conditional
    const float* frame_weights;  // [frames] sum of the weights behind sums, > 0
    float* next_latents;         // [frames, elements], may be latents
    float* next_input;           // [frames, elements] what the networks read in the next step
    Index frames, elements;
    float guidance_scale, sigma;
    float velocity_factor;  // -sigma / sqrt(sigma^2 + 1)
    float sample_divisor;   // sigma^2 + 1
    float sigma_change;     // sigma_next - sigma
    float input_divisor;    // sqrt(sigma_next^2 + 1)

    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        const float weight = frame_weights[row];
        const InputLine<float, kLanes> unconditional(sums + row * elements, span);
        const InputLine<float, kLanes> conditional(sums + (frames + row) * elements, span);
        const InputLine<float, kLanes> current(latents + row * elements, span);
        OutputLine<float, kLanes> stepped(next_latents + row * elements, span);
        OutputLine<float, kLanes> scaled(next_input + row * elements, span);
        span.each([&](Column at) {
            const float velocity = guided(unconditional[at] / weight, conditional[at] / weight);
            const float denoised = velocity * velocity_factor + current[at] / sample_divisor;
            const float derivative = (current[at] - denoised) / sigma;
            const float next = current[at] + derivative * sigma_change;
            stepped[at] = next;
            scaled[at] = next / input_divisor;
        });
        stepped.store();
        scaled.store();
    }

    // A scale of 1 is the conditional half alone, whatever the other half holds.
    DISPOSE_TARGET float guided(float unconditional, float conditional) const {
        if (guidance_scale == 1.0f) return conditional;
        return unconditional + guidance_scale * (conditional - unconditional);
    }
};

inline Status guided_euler_step(const float* latents,        // [frames, elements]
                                const float* sums,           // [2, frames, elements]
                                const float* frame_weights,  // [frames]
                                float* next_latents,         // [frames, elements]
                                float* next_input,           // [frames, elements]
                                Index frames, Index elements, float guidance_scale, float sigma, float sigma_next,
                                Stream stream) {
    const float sample_divisor = sigma * sigma + 1.0f;
    const GuidedEulerStep step{latents,
                               sums,
                               frame_weights,
                               next_latents,
                               next_input,
                               frames,
                               elements,
                               guidance_scale,
                               sigma,
                               -sigma / std::sqrt(sample_divisor),
                               sample_divisor,
                               sigma_next - sigma,
                               std::sqrt(sigma_next * sigma_next + 1.0f)};
    return parallel_for(frames, elements, stream, step);
}

}  // namespace dispose_rt
