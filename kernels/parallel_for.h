// One source for two targets. Every kernel is a functor over spans of a row, and `parallel_for` runs it: on the CPU a
// row is one span, so that inner loops vectorise; on a GPU every column is a span of its own, one thread each.
// Kernels gather: a cell is written by exactly one call, so results have the same bits every run, on any number of
// threads.
//
// This is the only file that knows which target is being compiled.
#pragma once

#include <cstdint>

namespace dispose_rt {

using Index = std::int64_t;
// A cudaStream_t as an integer; 0 is the default stream. The CPU ignores it and is done on return.
using Stream = std::uintptr_t;
// nullptr, or what went wrong. The text is static: nobody frees it.
using Status = const char*;

}  // namespace dispose_rt

#ifdef __CUDACC__

#include <cuda_runtime.h>

#define DISPOSE_TARGET __host__ __device__

namespace dispose_rt {

inline constexpr const char* kTarget = "cuda";

template <typename Body>
__global__ void run_spans(Index columns, Body body) {
    // Rows lie on x, which has room for 2^31 blocks; y has room for 65535.
    const Index row = static_cast<Index>(blockIdx.x);
    const Index column = static_cast<Index>(blockIdx.y) * blockDim.x + threadIdx.x;
    if (column < columns) body(row, column, column + 1);
}

// Queue body(row, begin, end) for every row on the stream, with columns split in spans [begin, end).
template <typename Body>
Status parallel_for(Index rows, Index columns, Stream stream, const Body& body) {
    constexpr Index kMaxThreads = 256, kMaxRows = 0x7fffffff, kMaxColumnBlocks = 65535;
    if (rows == 0 || columns == 0) return nullptr;
    const Index threads = columns < kMaxThreads ? (columns + 31) / 32 * 32 : kMaxThreads;
    const Index column_blocks = (columns + threads - 1) / threads;
    if (rows > kMaxRows || column_blocks > kMaxColumnBlocks) return "the array is too large for one kernel launch";
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(column_blocks));
    run_spans<<<grid, static_cast<unsigned>(threads), 0, reinterpret_cast<cudaStream_t>(stream)>>>(columns, body);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace dispose_rt

#else

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

#define DISPOSE_TARGET

namespace dispose_rt {

inline constexpr const char* kTarget = "cpu";

// Threads worth starting: one takes some ten microseconds to start, as long as a few ten thousand cells take.
inline Index count_workers(Index rows, Index columns) {
    constexpr Index kCellsPerWorker = Index{1} << 17, kMaxWorkers = 16;
    const Index cores = static_cast<Index>(std::thread::hardware_concurrency());
    return std::max(Index{1}, std::min({cores, rows, rows * columns / kCellsPerWorker, kMaxWorkers}));
}

// Call body(row, 0, columns) for every row. The threads end with the call, so that none competes with those of the
// inference engine afterwards.
template <typename Body>
Status parallel_for(Index rows, Index columns, Stream /*stream*/, const Body& body) {
    if (rows == 0 || columns == 0) return nullptr;
    const Index workers = count_workers(rows, columns);
    const auto run_share = [&](Index worker) {
        const Index end = rows * (worker + 1) / workers;
        for (Index row = rows * worker / workers; row < end; ++row) body(row, Index{0}, columns);
    };
    std::vector<std::thread> threads;
    threads.reserve(static_cast<std::size_t>(workers));
    Index started = 1;
    try {
        for (; started < workers; ++started) threads.emplace_back(run_share, started);
    } catch (const std::system_error&) {
        // the process may have no more threads: this one takes the shares that are left
    }
    run_share(0);
    for (Index worker = started; worker < workers; ++worker) run_share(worker);
    for (std::thread& thread : threads) thread.join();
    return nullptr;
}

}  // namespace dispose_rt

#endif
