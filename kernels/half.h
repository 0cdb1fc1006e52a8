// IEEE 754 binary16 and bfloat16 as storage types: arithmetic happens in float. Conversions are spelt out so that both
// targets and every compiler produce the same bits, subnormals included.
#pragma once

#include "float_bits.h"

namespace dispose_rt {

struct Half {
    std::uint16_t bits;
};

// The upper half of a float32.
struct Bfloat16 {
    std::uint16_t bits;
};

DISPOSE_TARGET inline float load(float stored) { return stored; }

// Every kind of number is worked out and one is chosen: threads of a GPU would take branches one after the other.
DISPOSE_TARGET inline float load(Half stored) {
    const std::uint32_t sign = (stored.bits & 0x8000u) << 16;
    const std::uint32_t magnitude = stored.bits & 0x7fffu;
    const std::uint32_t subnormal = bits_of(float_of(bits_of(0.5f) | magnitude) - 0.5f);  // multiples of 2^-24: exact
    const std::uint32_t normal = (magnitude << 13) + (112u << 23);
    const std::uint32_t special = 0x7f800000u | (magnitude << 13);  // infinity or NaN
    return float_of(sign | (magnitude < 0x400u ? subnormal : magnitude < 0x7c00u ? normal : special));
}

DISPOSE_TARGET inline float load(Bfloat16 stored) { return float_of(std::uint32_t{stored.bits} << 16); }

DISPOSE_TARGET inline void store(float value, float* target) { *target = value; }

// Rounds to nearest, ties to even; overflow becomes infinity.
DISPOSE_TARGET inline void store(float value, Half* target) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    // Below 2^-14: adding 0.5 lets the FPU round to multiples of 2^-24.
    const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    const std::uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    // 65520, half way beyond the largest half, and above is infinity.
    const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const std::uint32_t half = magnitude < 0x477ff000u ? finite : special;
    target->bits = static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) | half);
}

// Rounds to nearest, ties to even; overflow becomes infinity, and every NaN the same one.
DISPOSE_TARGET inline void store(float value, Bfloat16* target) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    target->bits = static_cast<std::uint16_t>(is_nan ? 0x7fc0u : rounded);
}

}  // namespace dispose_rt
