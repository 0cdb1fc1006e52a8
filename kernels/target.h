// What differs between the targets is here, in span.h, parallel_for.h and tiles.h; every other header is for both.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define DISPOSE_TARGET __device__                    // runs on the target
#define DISPOSE_HOST_AND_TARGET __host__ __device__  // the launching side calls it, too
#define DISPOSE_TABLE __device__ const               // constants that the target reads
#define DISPOSE_UNROLL _Pragma("unroll")
#define DISPOSE_NO_UNROLL _Pragma("unroll 1")
#else
#define DISPOSE_TARGET
#define DISPOSE_HOST_AND_TARGET
#define DISPOSE_TABLE inline constexpr
#define DISPOSE_UNROLL
#define DISPOSE_NO_UNROLL
#endif

namespace dispose_rt {

#ifdef __CUDACC__
inline constexpr const char* kTarget = "cuda";
#else
inline constexpr const char* kTarget = "cpu";
#endif

// Sizes, and offsets within an array.
using Index = std::int64_t;
// A row, or a column of it: 32 bits, because a GPU divides and compares them at half the cost.
using Position = std::int32_t;
// A cudaStream_t as an integer; 0 is the default stream. The CPU ignores it and is done on return.
using Stream = std::uintptr_t;
// nullptr, or what went wrong. The text is static: nobody frees it.
using Status = const char*;

inline constexpr Index kMaxPosition = 0x7fffffff;

// A row that counts through two nested dimensions, e.g. frames and lines.
struct Nested {
    Position outer, inner;
};

// 0 <= row, and 0 < length <= kMaxPosition.
DISPOSE_TARGET inline Nested split(Position row, Index length) {
    const std::uint32_t outer = static_cast<std::uint32_t>(row) / static_cast<std::uint32_t>(length);
    return {static_cast<Position>(outer), static_cast<Position>(row - outer * static_cast<std::uint32_t>(length))};
}

DISPOSE_HOST_AND_TARGET inline Index ceil_div(Index value, Index divisor) { return (value + divisor - 1) / divisor; }

}  // namespace dispose_rt
