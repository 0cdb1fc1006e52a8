// The columns of a row that one call of a body works on, and the lines of arrays that it reads and writes there.
//
// On the CPU a span is the whole row and a line is the memory itself, so that loops vectorise. On a GPU a span is as
// many columns as the body asks for (kLanes), and a line is held in registers, loaded and stored in words of up to 16
// bytes where its address allows. Nothing is written on a GPU before store().
#pragma once

#include <cstring>

#include "target.h"

namespace dispose_rt {

#ifdef __CUDACC__

// A column of the span at hand. It carries its lane, a constant once loops are unrolled: lines stay in registers.
struct Column {
    Position position, lane;
    DISPOSE_TARGET operator Position() const { return position; }
};

template <Position kLanes>
struct Span {
    Position begin, end;

    // f(column) for every column, in order.
    template <typename Function>
    DISPOSE_TARGET void each(Function f) const {
        DISPOSE_UNROLL for (Position lane = 0; lane < kLanes; ++lane) {
            if (begin + lane < end) f(Column{begin + lane, lane});
        }
    }

    // f(column) where holds(column). `holds` is called for every column, in order, before the first f.
    template <typename Predicate, typename Function>
    DISPOSE_TARGET void each_where(Predicate holds, Function f) const {
        std::uint32_t found = 0;
        each([&](Column column) { found |= static_cast<std::uint32_t>(holds(column)) << column.lane; });
        for (; found != 0; found &= found - 1) {
            const Position lane = __ffs(static_cast<int>(found)) - 1;
            f(Column{begin + lane, lane});
        }
    }
};

// The widest word that a group of lanes can be moved in.
template <std::size_t kBytes>
struct WordOf {
    using Type = std::conditional_t<kBytes % 16 == 0, uint4, std::conditional_t<kBytes % 8 == 0, uint2, std::uint32_t>>;
    static_assert(kBytes % 4 == 0, "lanes must fill words");
};

template <typename Value, Position kLanes>
struct Lanes {
    using Word = typename WordOf<sizeof(Value) * kLanes>::Type;
    static constexpr int kWords = sizeof(Value) * kLanes / sizeof(Word);

    Value values[kLanes];

    DISPOSE_TARGET static bool whole(const Value* memory, Span<kLanes> span) {
        return span.end - span.begin == kLanes && reinterpret_cast<std::uintptr_t>(memory) % sizeof(Word) == 0;
    }

    DISPOSE_TARGET void load(const Value* line, Span<kLanes> span) {
        const Value* const memory = line + span.begin;
        if (whole(memory, span)) {
            Word words[kWords];
            DISPOSE_UNROLL for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const Word*>(memory)[i];
            std::memcpy(values, words, sizeof words);
        } else {
            span.each([&](Column column) { values[column.lane] = line[column]; });
        }
    }

    DISPOSE_TARGET void store(Value* line, Span<kLanes> span) const {
        Value* const memory = line + span.begin;
        if (whole(memory, span)) {
            Word words[kWords];
            std::memcpy(words, values, sizeof words);
            DISPOSE_UNROLL for (int i = 0; i < kWords; ++i) reinterpret_cast<Word*>(memory)[i] = words[i];
        } else {
            span.each([&](Column column) { line[column] = values[column.lane]; });
        }
    }
};

// f(i) where holds(i), for i from 0 up to count in order. 32 calls of `holds` precede those of f: what they read is on
// its way at the same time, and threads with different hits stay together.
template <typename Predicate, typename Function>
DISPOSE_TARGET void each_index_where(Position count, Predicate holds, Function f) {
    for (Position first = 0; first < count; first += 32) {
        const Position tested = count - first < 32 ? count - first : 32;
        std::uint32_t found = 0;
#pragma unroll 6
        for (Position i = 0; i < tested; ++i) found |= static_cast<std::uint32_t>(holds(first + i)) << i;
        for (; found != 0; found &= found - 1) f(first + __ffs(static_cast<int>(found)) - 1);
    }
}

// A line that is read.
template <typename Value, Position kLanes>
class InputLine {
  public:
    DISPOSE_TARGET InputLine(const Value* line, Span<kLanes> span) { lanes_.load(line, span); }
    DISPOSE_TARGET Value operator[](Column column) const { return lanes_.values[column.lane]; }

  private:
    Lanes<Value, kLanes> lanes_;
};

// A line that is written; what it held before is not read.
template <typename Value, Position kLanes>
class OutputLine {
  public:
    OutputLine() = default;
    DISPOSE_TARGET OutputLine(Value* line, Span<kLanes> span) : line_(line), span_(span) {}
    DISPOSE_TARGET Value& operator[](Column column) { return lanes_.values[column.lane]; }
    DISPOSE_TARGET void store() const { lanes_.store(line_, span_); }

  protected:
    Value* line_;
    Span<kLanes> span_;
    Lanes<Value, kLanes> lanes_;
};

// A line that is changed.
template <typename Value, Position kLanes>
class UpdatedLine : public OutputLine<Value, kLanes> {
  public:
    DISPOSE_TARGET UpdatedLine(Value* line, Span<kLanes> span) : OutputLine<Value, kLanes>(line, span) {
        this->lanes_.load(line, span);
    }
};

// A line of `length` values that begins at some column, inside the row or not; read where the span meets it.
template <typename Value, Position kLanes>
class PlacedLine {
  public:
    DISPOSE_TARGET PlacedLine(const Value* line, Index column, Index length, Span<kLanes> span) : begin_(span.begin) {
        const Index first = column - span.begin, last = first + length, lanes = span.end - span.begin;
        first_ = static_cast<Position>(first > 0 ? (first < lanes ? first : lanes) : 0);
        last_ = static_cast<Position>(last > 0 ? (last < lanes ? last : lanes) : 0);
        each_lane([&](Position lane) { values_[lane] = line[lane - first]; });
    }

    // f(column, value), in order.
    template <typename Function>
    DISPOSE_TARGET void each(Function f) const {
        each_lane([&](Position lane) { f(Column{begin_ + lane, lane}, values_[lane]); });
    }

  private:
    template <typename Function>
    DISPOSE_TARGET void each_lane(Function f) const {
        DISPOSE_UNROLL for (Position lane = 0; lane < kLanes; ++lane) {
            if (first_ <= lane && lane < last_) f(lane);
        }
    }

    Position begin_, first_, last_;
    Value values_[kLanes];
};

#else

using Column = Position;

template <Position kLanes>
struct Span {
    Position begin, end;

    template <typename Function>
    void each(Function f) const {
        for (Position column = begin; column < end; ++column) f(column);
    }

    template <typename Predicate, typename Function>
    void each_where(Predicate holds, Function f) const {
        for (Position column = begin; column < end; ++column) {
            if (holds(column)) f(column);
        }
    }
};

template <typename Predicate, typename Function>
void each_index_where(Position count, Predicate holds, Function f) {
    for (Position i = 0; i < count; ++i) {
        if (holds(i)) f(i);
    }
}

template <typename Value, Position kLanes>
class InputLine {
  public:
    InputLine(const Value* line, Span<kLanes> /*span*/) : line_(line) {}
    Value operator[](Position column) const { return line_[column]; }

  private:
    const Value* line_;
};

template <typename Value, Position kLanes>
class OutputLine {
  public:
    OutputLine() = default;
    OutputLine(Value* line, Span<kLanes> /*span*/) : line_(line) {}
    Value& operator[](Position column) { return line_[column]; }
    void store() const {}

  private:
    Value* line_;
};

template <typename Value, Position kLanes>
using UpdatedLine = OutputLine<Value, kLanes>;

template <typename Value, Position kLanes>
class PlacedLine {
  public:
    PlacedLine(const Value* line, Index column, Index length, Span<kLanes> span)
        : line_(line),
          column_(column),
          first_(column > span.begin ? column : span.begin),
          last_(column + length < span.end ? column + length : span.end) {}

    template <typename Function>
    void each(Function f) const {
        for (Index column = first_; column < last_; ++column) {
            f(static_cast<Position>(column), line_[column - column_]);
        }
    }

  private:
    const Value* line_;
    Index column_, first_, last_;
};

#endif

}  // namespace dispose_rt
