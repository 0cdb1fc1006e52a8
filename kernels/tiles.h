// Kernels whose cells share what is costly to work out: a tile is prepared once, in memory that all its cells read.
//
// A tile is so many bands of lines, each split in spans. On a GPU a block of threads is its team, and every thread has
// one span of one band; on the CPU a tile is as wide as its row and its team is one thread, which takes band by band.
#pragma once

#include "parallel_for.h"

namespace dispose_rt {

#ifdef __CUDACC__

inline constexpr Position kTileSpans = 16, kTileBands = static_cast<Position>(kThreads) / kTileSpans;

template <Position kLanes>
inline constexpr Position kSpanColumns = kLanes;

// The threads of a tile. All of them make the same calls in the same order.
struct Team {
    // f(i) for i from 0 up to count, each in one thread; `first` is the thread that begins, so that all get their turn.
    template <typename Function>
    DISPOSE_TARGET void each(Position count, unsigned first, Function f) const {
        const Position start = static_cast<Position>((threadIdx.x - first) % kThreads);
        for (Position i = start; i < count; i += static_cast<Position>(kThreads)) f(i);
    }

    // f(band, span) for every span of every band.
    template <typename Function>
    DISPOSE_TARGET void each_cell(Function f) const {
        f(static_cast<Position>(threadIdx.x / kTileSpans), static_cast<Position>(threadIdx.x % kTileSpans));
    }

    // What f() answers, asked in one warp, which may call find().
    template <typename Value, typename Function>
    DISPOSE_TARGET void lead(Value& answer, Function f) const {
        if (threadIdx.x >= 32) return;
        const Value value = f();
        if (threadIdx.x == 0) answer = value;
    }

    // Bit i tells whether holds(i), for i from 0 up to a count of at most 32.
    template <typename Predicate>
    DISPOSE_TARGET std::uint32_t find(Position count, Predicate holds) const {
        const Position lane = static_cast<Position>(threadIdx.x % 32);
        return __ballot_sync(0xffffffffu, lane < count && holds(lane));
    }

    // What any thread wrote before is there for all.
    DISPOSE_TARGET void wait() const { __syncthreads(); }
};

// Values along a side of a tile of kSide positions that lie in a range, of kRange positions at most. None of them is 0.
template <Position kSide, Position kRange>
struct TileLine {
    static constexpr Position kItems = kSide;

    alignas(16) float values[kSide];  // 0 outside the range

    // Item `item` of kItems, f(position) in the range; `origin` is where the tile begins.
    template <typename Function>
    DISPOSE_TARGET void set(Position item, Position origin, Position begin, Position end, Function f) {
        const Position at = origin + item;
        values[item] = begin <= at && at < end ? f(at) : 0.0f;
    }
};

// What of a line lies in a span.
template <Position kLanes, typename Line>
class TileLinePart {
  public:
    DISPOSE_TARGET TileLinePart(const Line& line, Position origin, Span<kLanes> span) : begin_(span.begin) {
        using Word = typename WordOf<sizeof(float) * kLanes>::Type;
        Word words[sizeof(values_) / sizeof(Word)];
        DISPOSE_UNROLL for (std::size_t i = 0; i < sizeof words / sizeof(Word); ++i) {
            words[i] = reinterpret_cast<const Word*>(line.values + (span.begin - origin))[i];
        }
        std::memcpy(values_, words, sizeof words);
    }

    // f(position, value), in order.
    template <typename Function>
    DISPOSE_TARGET void each(Function f) const {
        DISPOSE_UNROLL for (Position lane = 0; lane < kLanes; ++lane) {
            if (values_[lane] != 0) f(Column{begin_ + lane, lane}, values_[lane]);
        }
    }

  private:
    Position begin_;
    float values_[kLanes];
};

// f(i) for every bit i that is set, in order.
template <typename Function>
DISPOSE_TARGET void each_bit(std::uint32_t bits, Function f) {
    for (; bits != 0; bits &= bits - 1) f(static_cast<Position>(__ffs(static_cast<int>(bits)) - 1));
}

template <typename Body>
__global__ void __launch_bounds__(kThreads) run_tiles(const __grid_constant__ Body body) {
    await_earlier_work();
    __shared__ typename Body::Shared shared;
    body(static_cast<Position>(blockIdx.x), Team{}, shared);
}

// Queues body(tile, team, shared) for every tile of so many cells.
template <typename Body>
Status parallel_for_tiles(Index tiles, Index /*cells*/, Stream stream, const Body& body) {
    if (tiles > kMaxPosition) return kTooLarge;
    return tiles == 0 ? nullptr : launch_blocks(run_tiles<Body>, body, tiles, stream);
}

#else

// Many lines to a tile, as spans are whole rows: what they share is prepared less often.
inline constexpr Position kTileSpans = 1, kTileBands = 32;

template <Position kLanes>
inline constexpr Position kSpanColumns = kMaxPosition;

struct Team {
    template <typename Function>
    void each(Position count, unsigned /*first*/, Function f) const {
        for (Position i = 0; i < count; ++i) f(i);
    }

    template <typename Function>
    void each_cell(Function f) const {
        for (Position band = 0; band < kTileBands; ++band) f(band, Position{0});
    }

    template <typename Value, typename Function>
    void lead(Value& answer, Function f) const {
        answer = f();
    }

    template <typename Predicate>
    std::uint32_t find(Position count, Predicate holds) const {
        std::uint32_t found = 0;
        for (Position i = 0; i < count; ++i) found |= static_cast<std::uint32_t>(holds(i)) << i;
        return found;
    }

    void wait() const {}
};

template <Position kSide, Position kRange>
struct TileLine {
    static constexpr Position kItems = kSide < kRange ? kSide : kRange;

    Position first, last;
    float values[kItems];  // of the range

    template <typename Function>
    void set(Position item, Position /*origin*/, Position begin, Position end, Function f) {
        first = begin;
        last = end;
        if (item < end - begin) values[item] = f(begin + item);
    }
};

template <Position kLanes, typename Line>
class TileLinePart {
  public:
    TileLinePart(const Line& line, Position /*origin*/, Span<kLanes> span)
        : values_(line.values),
          origin_(line.first),
          first_(line.first > span.begin ? line.first : span.begin),
          last_(line.last < span.end ? line.last : span.end) {}

    template <typename Function>
    void each(Function f) const {
        for (Position at = first_; at < last_; ++at) f(at, values_[at - origin_]);
    }

  private:
    const float* values_;
    Position origin_, first_, last_;
};

template <typename Function>
void each_bit(std::uint32_t bits, Function f) {
    for (Position i = 0; bits != 0; ++i, bits >>= 1) {
        if (bits & 1) f(i);
    }
}

template <typename Body>
Status parallel_for_tiles(Index tiles, Index cells, Stream /*stream*/, const Body& body) {
    if (tiles > kMaxPosition) return kTooLarge;
    if (tiles == 0) return nullptr;
    share_rows(tiles, cells, [&](Position tile) {
        typename Body::Shared shared;
        body(tile, Team{}, shared);
    });
    return nullptr;
}

#endif

}  // namespace dispose_rt
