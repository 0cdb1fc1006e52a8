// Weighted mean over tiles, classifier-free guidance, one Euler step with v-prediction and the next step's input
// scaling, in one pass. Operations are ordered as in the reference and never fused, so FP32 results have its bits.
#pragma once

#include "begin_step.h"
#include "parallel_for.h"

namespace dispose_rt {

// Row: a frame. Columns: elements of a frame.
struct GuidedEulerStep {
    static constexpr Position kLanes = 4;

    float* latents;                  // [frames, elements]
    const float* sums;               // [2, frames, elements] unconditional, conditional
    const float* frame_weights;      // [frames] sum of the weights behind sums, > 0
    const StepConstants* constants;  // [1] of the step
    const std::int32_t* nonfinite;   // [1] not 0: the prediction holds NaN or infinity, and the step is not taken
    float* next_input;               // [frames, elements] what the networks read in the next step
    Index frames, elements;

    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        if (*nonfinite != 0) return;  // the latents stay finite: whoever looks for the cause finds it
        const float weight = frame_weights[row];
        const StepConstants step = *constants;
        const InputLine<float, kLanes> unconditional(sums + row * elements, span);
        const InputLine<float, kLanes> conditional(sums + (frames + row) * elements, span);
        UpdatedLine<float, kLanes> line(latents + row * elements, span);
        OutputLine<float, kLanes> scaled(next_input + row * elements, span);
        span.each([&](Column at) {
            const float current = line[at];
            const float velocity = guided(unconditional[at] / weight, conditional[at] / weight, step.guidance_scale);
            const float denoised = velocity * step.velocity_factor + current / step.sample_divisor;
            const float derivative = (current - denoised) / step.sigma;
            const float next = current + derivative * step.sigma_change;
            line[at] = next;
            scaled[at] = next / step.input_divisor;
        });
        line.store();
        scaled.store();
    }

    // A scale of 1 is the conditional half alone, whatever the other half holds.
    DISPOSE_TARGET static float guided(float unconditional, float conditional, float scale) {
        if (scale == 1.0f) return conditional;
        return unconditional + scale * (conditional - unconditional);
    }
};

inline Status guided_euler_step(float* latents,                 // [frames, elements], from one noise level to the next
                                const float* sums,              // [2, frames, elements]
                                const float* frame_weights,     // [frames]
                                const float* constants,         // [7], of begin_step
                                const std::int32_t* nonfinite,  // [1], of accumulate_tile
                                float* next_input,              // [frames, elements]
                                Index frames, Index elements, Stream stream) {
    const GuidedEulerStep step{latents,   sums,       frame_weights, reinterpret_cast<const StepConstants*>(constants),
                               nonfinite, next_input, frames,        elements};
    return parallel_for(frames, elements, stream, step);
}

}  // namespace dispose_rt
