// Chosen frames of a clip, side by side: what the networks read of one tile.
#pragma once

#include "parallel_for.h"

namespace dispose_rt {

// Row: a slot. Columns: units of a frame, whatever they hold.
template <typename Unit>
struct GatherFrames {
    static constexpr Position kLanes = 16 / sizeof(Unit);

    const Unit* source;               // [frames, units]
    const std::int32_t* slot_frames;  // [slots] frame of the source
    Unit* target;                     // [slots, units]
    Index frames, units;

    DISPOSE_TARGET void operator()(Position slot, Span<kLanes> span) const {
        const Index frame = slot_frames[slot];
        if (frame < 0 || frame >= frames) return;
        const InputLine<Unit, kLanes> from(source + frame * units, span);
        OutputLine<Unit, kLanes> to(target + slot * units, span);
        span.each([&](Column unit) { to[unit] = from[unit]; });
        to.store();
    }
};

template <typename Unit>
Status gather_units(const void* source, const std::int32_t* slot_frames, void* target, Index frames, Index slots,
                    Index frame_bytes, Stream stream) {
    const Index units = frame_bytes / static_cast<Index>(sizeof(Unit));
    const GatherFrames<Unit> gather{static_cast<const Unit*>(source), slot_frames, static_cast<Unit*>(target), frames,
                                    units};
    return parallel_for(slots, units, stream, gather);
}

// A slot whose frame does not exist is left as it is. Bytes are moved as they are, in the largest units that both
// arrays are made of.
inline Status gather_frames(const std::uint8_t* source,       // [frames, frame_bytes]
                            const std::int32_t* slot_frames,  // [slots]
                            std::uint8_t* target,             // [slots, frame_bytes], apart from the source
                            Index frames, Index slots, Index frame_bytes, Stream stream) {
    const auto places = reinterpret_cast<std::uintptr_t>(source) | reinterpret_cast<std::uintptr_t>(target);
    const std::uintptr_t boundaries = places | static_cast<std::uintptr_t>(frame_bytes);
    const auto gather = boundaries % 4 == 0   ? gather_units<std::uint32_t>
                        : boundaries % 2 == 0 ? gather_units<std::uint16_t>
                                              : gather_units<std::uint8_t>;
    return gather(source, slot_frames, target, frames, slots, frame_bytes, stream);
}

}  // namespace dispose_rt
