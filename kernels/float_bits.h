// What a float32 is made of.
#pragma once

#include <cstring>

#include "target.h"

namespace dispose_rt {

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

// Not zero for infinity and NaN alone. A number, so that loops gather it with `or` and stay without branches.
DISPOSE_TARGET inline std::uint32_t nonfinite_bit(float value) {
    return ((bits_of(value) & 0x7f800000u) + 0x00800000u) & 0x80000000u;
}

// Sets a flag that any thread may set. Whoever writes writes 1: it does not matter who was first.
DISPOSE_TARGET inline void raise_flag(std::int32_t* flag) {
#ifdef __CUDACC__
    *static_cast<volatile std::int32_t*>(flag) = 1;
#else
    __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
#endif
}

}  // namespace dispose_rt
