"""What one address may ask of the page."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .addresses import read_address

GIB = 2**30
LARGEST_UPLOAD_BYTES = 8 * GIB
KEPT_S = 24 * 3600
"""Time after which an unused upload is removed, in seconds."""
UPLOADS_KEPT = 500
"""Uploads of one address within `KEPT_S`."""
UPLOADS_KEPT_BYTES = 16 * GIB
REQUESTS_AT_ONCE = 200
"""Open requests of one address; a visitor's tab keeps two open."""
EVENTS_QUEUED = 8
"""Places of one address in the queue: runs, and checks of uploads."""
WRONG_TOKENS = 10
"""Wrong tokens of one address within `WRONG_TOKENS_S`."""
WRONG_TOKENS_S = 60.0


class Bounds:
    """Counts requests, uploads and wrong tokens by address. It is used by the thread of the event loop alone.

    Args:
        now_s: a clock that never goes back.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._open: Counter[str] = Counter()
        self._uploads: dict[str, deque[tuple[float, int]]] = {}
        self._wrong: dict[str, deque[tuple[float, int]]] = {}

    @contextmanager
    def take_request(self, address: str) -> Iterator[bool]:
        """Count a request while it is open; yields whether the address may have it."""
        with count_open(self._open, address) as count:
            yield count <= REQUESTS_AT_ONCE

    def take_upload(self, address: str, size_bytes: int) -> bool:
        """Count an upload, and return whether the address may have it."""
        kept = self._recent(self._uploads, address, KEPT_S)
        if len(kept) >= UPLOADS_KEPT or sum(size for _, size in kept) + size_bytes > UPLOADS_KEPT_BYTES:
            return False
        self._add(self._uploads, address, size_bytes)
        return True

    def may_log_in(self, address: str) -> bool:
        """Whether the address may try a token."""
        return len(self._recent(self._wrong, address, WRONG_TOKENS_S)) < WRONG_TOKENS

    def note_wrong_token(self, address: str) -> None:
        """Count a wrong token."""
        self._add(self._wrong, address, 0)

    def forget_old(self) -> None:
        """Drop the records of addresses that have not come back."""
        for records, limit_s in ((self._uploads, float(KEPT_S)), (self._wrong, WRONG_TOKENS_S)):
            for address in list(records):
                self._recent(records, address, limit_s)

    def _add(self, records: dict[str, deque[tuple[float, int]]], address: str, value: int) -> None:
        records.setdefault(address, deque()).append((self._now_s(), value))

    def _recent(
        self, records: dict[str, deque[tuple[float, int]]], address: str, limit_s: float
    ) -> deque[tuple[float, int]]:
        """Records of an address that are younger than `limit_s`; older ones are dropped."""
        kept = records.get(address, deque())
        while kept and self._now_s() - kept[0][0] > limit_s:
            kept.popleft()
        if not kept:
            records.pop(address, None)
        return kept


@contextmanager
def count_open(counter: Counter[str], key: str) -> Iterator[int]:
    """Count something while it is open, and yield how many of its key are; the counter holds no zeros."""
    counter[key] += 1
    try:
        yield counter[key]
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


def name_address(host: str) -> str:
    """The address that bounds apply to: an IPv4 address, or the /64 network of an IPv6 one, which one host owns."""
    address = read_address(host)
    if address is None:
        return host
    return str(address if address.version == 4 else ipaddress.ip_network((address, 64), strict=False))
