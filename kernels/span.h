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

// How many lines share a search: on a GPU as many as leave registers, on the CPU as many as leave room in its cache.
template <typename Value>
inline constexpr Position kBandLines = 16 / sizeof(Value);

// A column of the span at hand. It carries its lane, a constant once loops are unrolled: lines stay in registers.
struct Column {
    Position position, lane;
    DISPOSE_TARGET operator Position() const { return position; }
};

template <Position kLanes>
struct Span {
    Position begin, end;

    // How far into the span a column lies; as constant as the column.
    DISPOSE_TARGET Position lane(Column column) const { return column.lane; }

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

// Spelt out, because the compiler takes an assignment of 16 bytes apart now and then, and stores four times four.
DISPOSE_TARGET inline void store_word(uint4 word, uint4* target) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)), "r"(word.x),
                 "r"(word.y), "r"(word.z), "r"(word.w)
                 : "memory");
}
DISPOSE_TARGET inline void store_word(uint2 word, uint2* target) { *target = word; }
DISPOSE_TARGET inline void store_word(std::uint32_t word, std::uint32_t* target) { *target = word; }

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
            DISPOSE_UNROLL for (int i = 0; i < kWords; ++i) store_word(words[i], reinterpret_cast<Word*>(memory) + i);
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

// What f answers for every column, asked in order: all before any is used, so that loads overlap.
template <typename Value, Position kLanes>
struct Gathered {
    Value values[kLanes];
    DISPOSE_TARGET Value operator[](Column column) const { return values[column.lane]; }
};

template <Position kLanes, typename Function>
DISPOSE_TARGET auto gather(Span<kLanes> span, Function f) {
    Gathered<decltype(f(Column{})), kLanes> gathered;
    if (span.end - span.begin == kLanes) {  // without a condition for each column, all are on their way at once
        DISPOSE_UNROLL for (Position lane = 0; lane < kLanes; ++lane) {
            gathered.values[lane] = f(Column{span.begin + lane, lane});
        }
    } else {
        span.each([&](Column column) { gathered.values[column.lane] = f(column); });
    }
    return gathered;
}

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

// Up to kLines lines of a span, `stride` values apart. They keep one address, which leaves registers to their values.
template <typename Value, Position kLanes, Position kLines>
class OutputLines {
  public:
    DISPOSE_TARGET OutputLines(Value* first, Index stride, Span<kLines> lines, Span<kLanes> span)
        : first_(first), stride_(stride), count_(lines.end - lines.begin), span_(span) {}

    // What is there already, to be changed.
    DISPOSE_TARGET void load() {
        each_line([&](Position line) { lanes_[line].load(first_ + line * stride_, span_); });
    }

    DISPOSE_TARGET void clear() {
        each_line(
            [&](Position line) { span_.each([&](Column column) { lanes_[line].values[column.lane] = Value{}; }); });
    }

    DISPOSE_TARGET Value& at(Column line, Column column) { return lanes_[line.lane].values[column.lane]; }

    DISPOSE_TARGET void store() const {
        each_line([&](Position line) { lanes_[line].store(first_ + line * stride_, span_); });
    }

  private:
    template <typename Function>
    DISPOSE_TARGET void each_line(Function f) const {
        DISPOSE_UNROLL for (Position line = 0; line < kLines; ++line) {
            if (line < count_) f(line);
        }
    }

    Value* first_;
    Index stride_;
    Position count_;
    Span<kLanes> span_;
    Lanes<Value, kLanes> lanes_[kLines];
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

template <typename Value>
inline constexpr Position kBandLines = 16;

template <Position kLanes>
struct Span {
    Position begin, end;

    Position lane(Column column) const { return column - begin; }

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

// On the CPU f is asked when a column is read: read each once, in order.
template <typename Function>
struct Gathered {
    Function f;
    auto operator[](Position column) const { return f(column); }
};

template <Position kLanes, typename Function>
Gathered<Function> gather(Span<kLanes> /*span*/, Function f) {
    return {f};
}

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

template <typename Value, Position kLanes, Position kLines>
class OutputLines {
  public:
    OutputLines(Value* first, Index stride, Span<kLines> lines, Span<kLanes> span)
        : first_(first), stride_(stride), lines_(lines), span_(span) {}
    void load() const {}
    void clear() {
        lines_.each([&](Position line) {
            Value* const values = &at(line, 0);  // a loop that compilers turn into memset
            span_.each([&](Position column) { values[column] = Value{}; });
        });
    }
    Value& at(Position line, Position column) { return first_[(line - lines_.begin) * stride_ + column]; }
    void store() const {}

  private:
    Value* first_;
    Index stride_;
    Span<kLines> lines_;
    Span<kLanes> span_;
};

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
