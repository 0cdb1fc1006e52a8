// The start of a denoising step: what depends on its number is read from a table on the device, so that one CUDA graph
// serves every step.
#pragma once

#include "parallel_for.h"

namespace dispose_rt {

// The columns of the table, in float32, as the host worked them out.
struct StepConstants {
    float timestep, guidance_scale, sigma;
    float velocity_factor;  // -sigma / sqrt(sigma^2 + 1)
    float sample_divisor;   // sigma^2 + 1
    float sigma_change;     // sigma_next - sigma
    float input_divisor;    // sqrt(sigma_next^2 + 1)
};

static_assert(sizeof(StepConstants) == 7 * sizeof(float), "a table of steps is an array [steps, 7]");

// One row and one column. The kernel before may still have been reading the constants when this one was launched early,
// and the kernel after is launched early in turn: both orders hold, because every thread of every kernel waits first
// (await_earlier_work) until the kernel before is done and what it wrote is visible, and lets the next kernel be
// launched only after that. So no kernel touches memory before all that precede it are done.
struct BeginStep {
    static constexpr Position kLanes = 1;

    const StepConstants* table;  // [steps]
    std::int32_t* counter;       // [1]
    float* timestep;             // [1]
    StepConstants* constants;    // [1]
    Index steps;

    DISPOSE_TARGET void operator()(Position /*row*/, Span<kLanes> /*span*/) const {
        const std::int32_t step = *counter;
        const StepConstants now = table[step < 0 ? 0 : step < steps ? step : steps - 1];
        *timestep = now.timestep;
        *constants = now;
        if (step < kMaxPosition) *counter = step + 1;
    }
};

// A counter outside the table takes its first or last row.
inline Status begin_step(const float* table,     // [steps, 7]
                         std::int32_t* counter,  // [1] number of the step; 1 is added
                         float* timestep,        // [1]
                         float* constants,       // [7]
                         Index steps, Stream stream) {
    const BeginStep begin{reinterpret_cast<const StepConstants*>(table), counter, timestep,
                          reinterpret_cast<StepConstants*>(constants), steps};
    return steps < 1 ? "a table of steps has no row" : parallel_for(1, 1, stream, begin);
}

}  // namespace dispose_rt
