// IEEE 754 binary16 as a storage type: arithmetic happens in float. Conversions are spelt out so that both targets and
// every compiler produce the same bits, subnormals included.
#pragma once

#include <cstdint>
#include <cstring>

#include "parallel_for.h"

namespace dispose_rt {

struct Half {
    std::uint16_t bits;
};

DISPOSE_TARGET inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

DISPOSE_TARGET inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

DISPOSE_TARGET inline float load(float stored) { return stored; }

DISPOSE_TARGET inline float load(Half stored) {
    const std::uint32_t sign = (stored.bits & 0x8000u) << 16;
    const std::uint32_t exponent = (stored.bits >> 10) & 0x1fu;
    const std::uint32_t mantissa = stored.bits & 0x3ffu;
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
        return float_of(sign | bits_of(static_cast<float>(mantissa) * 0x1p-24f));
    }
    if (exponent == 0x1f) return float_of(sign | 0x7f800000u | (mantissa << 13));  // infinity or NaN
    return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

DISPOSE_TARGET inline void store(float value, float* target) { *target = value; }

// Rounds to nearest, ties to even; overflow becomes infinity.
DISPOSE_TARGET inline void store(float value, Half* target) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    std::uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u;                     // NaN
    } else if (magnitude >= 0x477ff000u) {  // 65520, half way beyond the largest half
        half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 lets the FPU round to multiples of 2^-24
        half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    } else {
        const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
        half = (rounded - (112u << 23)) >> 13;
    }
    target->bits = static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) | half);
}

}  // namespace dispose_rt
