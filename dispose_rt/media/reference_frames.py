"""How many decoded pictures a film makes its decoder keep, read from its headers before anything is decoded.

Decoders of H.264 and HEVC keep as many pictures as a sequence parameter set asks for, up to 16, however large they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

MOST = 16
"""Of H.264 and HEVC (ITU-T H.264, A.3.1; H.265, A.4.2)."""
_KEPT = {"h264": MOST, "hevc": MOST, "vp9": 8, "av1": 8}
_KEPT_BY_OTHERS = 3
"""MPEG-1 to MPEG-4, VP8 and Theora keep one to three; codecs of single pictures keep none."""
_HIGH_PROFILES = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))
"""Profiles of H.264 whose parameter set states the colour format (7.3.2.1.1)."""
_H264_SET, _HEVC_SET = 7, 33


class KeptFrames:
    """Reads the sequence parameter sets of one film.

    Args:
        codec: FFmpeg's name; of others than "h264" and "hevc", `count` is the most that their decoders keep.
        extradata: what the container keeps for the decoder.

    Attributes:
        count: most pictures that a set has asked for so far; the codec's most as long as there was none.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self._codec = codec
        self._length_bytes = 0  # of a unit's length; 0 where start codes part the units
        self.count = _KEPT.get(codec, _KEPT_BY_OTHERS)
        self._is_known = False
        if codec in _READ and extradata:
            if extradata[0] == 1:  # avcC or hvcC (ISO/IEC 14496-15): whole units lie in it, whatever is around them
                at = 4 if codec == "h264" else 21
                self._length_bytes = 1 + (extradata[at] & 3) if len(extradata) > at else 4
                self._take(_find_in_record(codec, extradata))
            else:
                self._take(_split_by_start_codes(extradata))

    def feed(self, packet: bytes) -> None:
        """Look for parameter sets in a packet, which may bring others than the container has."""
        if self._codec in _READ:
            by_length = self._length_bytes and not packet.startswith((b"\0\0\1", b"\0\0\0\1"))
            self._take(_split_by_length(packet, self._length_bytes) if by_length else _split_by_start_codes(packet))

    def _take(self, units: Iterator[bytes]) -> None:
        for unit in units:
            if not _is_set(self._codec, unit):
                continue
            try:
                count = min(MOST, _READ[self._codec](_Bits(unit)))
            except IndexError:  # cut short: the decoder refuses it as well
                continue
            self.count = max(self.count, count) if self._is_known else count
            self._is_known = True


def _is_set(codec: str, unit: bytes) -> bool:
    if len(unit) < 4:
        return False
    return unit[0] & 0x1F == _H264_SET if codec == "h264" else unit[0] >> 1 & 0x3F == _HEVC_SET


def _split_by_start_codes(data: bytes) -> Iterator[bytes]:
    """Units of a byte stream (H.264, annex B)."""
    return iter(data.split(b"\0\0\1")[1:])


def _split_by_length(data: bytes, length_bytes: int) -> Iterator[bytes]:
    at = 0
    while at + length_bytes < len(data):
        size = int.from_bytes(data[at : at + length_bytes])
        at += length_bytes
        yield data[at : at + min(size, 4096)]
        at += size


def _find_in_record(codec: str, record: bytes) -> Iterator[bytes]:
    """Parameter sets of a decoder configuration record (ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1)."""
    if codec == "h264":
        arrays, at = [record[5] & 0x1F] if len(record) > 6 else [], 6
    else:
        arrays, at = [-1] * record[22] if len(record) > 23 else [], 23
    for stated in arrays:
        count = stated
        if count < 0:  # hvcC: a type, then a count, before every array
            count, at = int.from_bytes(record[at + 1 : at + 3]), at + 3
        for _ in range(count):
            size = int.from_bytes(record[at : at + 2])
            yield record[at + 2 : at + 2 + size]
            at += 2 + size


class _Bits:
    """Reads a unit bit by bit; behind its end is an IndexError."""

    def __init__(self, unit: bytes) -> None:
        self._data = unit.replace(b"\0\0\3", b"\0\0")  # "emulation prevention" (7.3.1)
        self._at = 0

    def read(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self._data[self._at >> 3] >> (7 - (self._at & 7)) & 1
            self._at += 1
        return value

    def golomb(self) -> int:
        """An unsigned number of variable length (9.1)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise IndexError
        return (1 << zeros) - 1 + self.read(zeros)


def _read_h264(bits: _Bits) -> int:
    """max_num_ref_frames (H.264, 7.3.2.1.1)."""
    bits.read(8)
    profile = bits.read(8)
    bits.read(16)
    bits.golomb()
    if profile in _HIGH_PROFILES:
        chroma = bits.golomb()
        if chroma == 3:
            bits.read(1)
        bits.golomb()
        bits.golomb()
        bits.read(1)
        if bits.read(1):
            for number in range(12 if chroma == 3 else 8):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    bits.golomb()
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.read(1)
        bits.golomb()
        bits.golomb()
        for _ in range(min(255, bits.golomb())):
            bits.golomb()
    return bits.golomb()


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            coded = bits.golomb()
            delta = (coded + 1) // 2 if coded % 2 else -(coded // 2)
            following = (last + delta) % 256
        last = following or last


def _read_hevc(bits: _Bits) -> int:
    """sps_max_dec_pic_buffering_minus1 of the highest layer (H.265, 7.3.2.2.1 and 7.3.3)."""
    bits.read(16 + 4)
    layers = bits.read(3)
    bits.read(1 + 88 + 8)
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    if layers:
        bits.read(2 * (8 - layers))
    for has_profile, has_level in present:
        bits.read(88 * has_profile + 8 * has_level)
    bits.golomb()
    if bits.golomb() == 3:
        bits.read(1)
    bits.golomb()
    bits.golomb()
    if bits.read(1):
        for _ in range(4):
            bits.golomb()
    bits.golomb()
    bits.golomb()
    bits.golomb()
    count = 0
    for _ in range(layers + 1 if bits.read(1) else 1):
        count = max(count, bits.golomb())
        bits.golomb()
        bits.golomb()
    return count


_READ: dict[str, Callable[[_Bits], int]] = {"h264": _read_h264, "hevc": _read_hevc}
