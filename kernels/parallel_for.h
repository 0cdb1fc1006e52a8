// One source for two targets. Every kernel is a functor over spans of a row, and `parallel_for` runs it: on the CPU a
// row is one span and threads share the rows; on a GPU every thread has one span of Body::kLanes columns.
// Kernels gather: a cell is written by exactly one call, so results have the same bits every run, on any number of
// threads.
#pragma once

#include "span.h"
#include "target.h"

#ifndef __CUDACC__
#include <algorithm>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>
#endif

namespace dispose_rt {

// A kernel and how far it goes: body(row, span) for every row, with columns split in spans.
template <typename Body>
struct Work {
    Index rows, columns;
    Body body;
};

inline constexpr const char* kTooLarge = "the array is too large for one kernel launch";

#ifdef __CUDACC__

inline constexpr unsigned kThreads = 256;

// Works that run in one launch, each in blocks of its own.
template <typename Body, int kWorks>
struct Launch {
    Work<Body> works[kWorks];
    unsigned first_block[kWorks + 1];
};

// A launch may begin while the one before it still runs (see launch_blocks): its blocks take the room that is left, and
// wait here until everything queued before is done and visible. Called first of all, by every thread.
DISPOSE_TARGET inline void await_earlier_work() {
#if __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Threads count through the spans of all rows, so that blocks are full whatever the width of a row.
template <typename Body, int kWorks>
__global__ void __launch_bounds__(kThreads) run_spans(const __grid_constant__ Launch<Body, kWorks> launch) {
    await_earlier_work();
    int index = 0;
    while (index + 1 < kWorks && blockIdx.x >= launch.first_block[index + 1]) ++index;
    const Work<Body>& work = launch.works[index];
    const Position columns = static_cast<Position>(work.columns);
    const unsigned spans = (static_cast<unsigned>(columns) + Body::kLanes - 1) / Body::kLanes;
    const unsigned thread = (blockIdx.x - launch.first_block[index]) * kThreads + threadIdx.x;
    const unsigned row = thread / spans;
    if (row >= static_cast<unsigned>(work.rows)) return;
    const Position begin = static_cast<Position>(thread - row * spans) * Body::kLanes;
    const Position end = columns - begin > Body::kLanes ? begin + Body::kLanes : columns;
    work.body(static_cast<Position>(row), Span<Body::kLanes>{begin, end});
}

// Queues a kernel of one argument. It may begin early where the code for the current GPU waits for its predecessor,
// from sm_90 on: the gap between two launches is as long as a few MB take.
template <typename Argument>
Status launch_blocks(void (*kernel)(Argument), const Argument& argument, Index blocks, Stream stream) {
    cudaFuncAttributes code;
    cudaError_t error = cudaFuncGetAttributes(&code, kernel);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.stream = reinterpret_cast<cudaStream_t>(stream);
    config.attrs = &early;
    config.numAttrs = code.ptxVersion >= 90 ? 1 : 0;
    error = cudaLaunchKernelEx(&config, kernel, argument);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Queues the works on the stream, all in one launch.
template <typename Body, int kWorks>
Status parallel_for(const Work<Body> (&works)[kWorks], Stream stream) {
    Launch<Body, kWorks> launch{};
    Index blocks = 0;
    for (int i = 0; i < kWorks; ++i) {
        const Index rows = works[i].rows, columns = works[i].columns;
        launch.works[i] = works[i];
        launch.first_block[i] = static_cast<unsigned>(blocks);
        if (rows == 0 || columns == 0) continue;
        if (rows > kMaxPosition || columns > kMaxPosition - Body::kLanes) return kTooLarge;
        const Index spans = ceil_div(columns, Body::kLanes);
        if (rows > kMaxPosition / spans) return kTooLarge;
        blocks += ceil_div(rows * spans, kThreads);
        if (blocks > kMaxPosition) return kTooLarge;
    }
    launch.first_block[kWorks] = static_cast<unsigned>(blocks);
    return blocks == 0 ? nullptr : launch_blocks(run_spans<Body, kWorks>, launch, blocks, stream);
}

#else

// Threads worth starting: one takes some ten microseconds to start, as long as a few ten thousand cells take.
inline Index count_workers(Index rows, Index cells) {
    constexpr Index kCellsPerWorker = Index{1} << 17, kMaxWorkers = 16;
    const Index cores = static_cast<Index>(std::thread::hardware_concurrency());
    return std::max(Index{1}, std::min({cores, rows, rows * cells / kCellsPerWorker, kMaxWorkers}));
}

// f(row) for every row of so many cells, shared among threads. They end with the call, so that none competes with
// those of the inference engine afterwards.
template <typename Function>
void share_rows(Index rows, Index cells, const Function& f) {
    const Index workers = count_workers(rows, cells);
    const auto run_share = [&](Index worker) {
        const Index end = rows * (worker + 1) / workers;
        for (Index row = rows * worker / workers; row < end; ++row) f(static_cast<Position>(row));
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
}

// Cells that a body writes for a row and a column: a body that takes several lines at once says so as kBand.
template <typename Body, typename = void>
inline constexpr Index kCellsPerColumn = 1;

template <typename Body>
inline constexpr Index kCellsPerColumn<Body, std::void_t<decltype(Body::kBand)> > = Body::kBand;

template <typename Body>
Status run_rows(const Work<Body>& work) {
    if (work.rows > kMaxPosition || work.columns > kMaxPosition) return kTooLarge;
    if (work.rows == 0 || work.columns == 0) return nullptr;
    const Span<Body::kLanes> span{0, static_cast<Position>(work.columns)};
    share_rows(work.rows, work.columns * kCellsPerColumn<Body>, [&](Position row) { work.body(row, span); });
    return nullptr;
}

template <typename Body, int kWorks>
Status parallel_for(const Work<Body> (&works)[kWorks], Stream /*stream*/) {
    for (const Work<Body>& work : works) {
        if (const Status error = run_rows(work)) return error;
    }
    return nullptr;
}

#endif

template <typename Body>
Status parallel_for(Index rows, Index columns, Stream stream, const Body& body) {
    const Work<Body> works[1] = {{rows, columns, body}};
    return parallel_for(works, stream);
}

}  // namespace dispose_rt
