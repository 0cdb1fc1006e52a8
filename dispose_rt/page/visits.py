"""Which visitors are there, and the end of what nobody waits for any more."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .bounds import count_open, name_address
from .jobs import Jobs

UNHEARD_S = 10.0
"""Time after which queued and running events of a visitor who does not listen end, in seconds."""
FORGOTTEN_S = 600.0
"""Time after which the job and result of a visitor who is not there are removed, in seconds."""


class Visits:
    """Sessions with an open stream of messages. It is used by the thread of the event loop alone.

    Args:
        now_s: a clock that never goes back.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._open: Counter[str] = Counter()
        self._last_s: dict[str, float] = {}

    @contextmanager
    def listen(self, session: str) -> Iterator[None]:
        """Count a stream of a session while it is open."""
        try:
            with count_open(self._open, session):
                yield
        finally:
            if session not in self._open:
                self._last_s[session] = self._now_s()

    def find_absent(self, sessions: Iterable[str]) -> dict[str, float]:
        """Find those sessions that have no stream.

        Args:
            sessions: all sessions of interest; others are forgotten.

        Returns:
            For each, the time since it had one, or since it was asked about first, in seconds.
        """
        now_s = self._now_s()
        absent = {session for session in sessions if session not in self._open}
        self._last_s = {session: self._last_s.get(session, now_s) for session in absent}
        return {session: now_s - since_s for session, since_s in self._last_s.items()}


def list_events(queue: Any) -> list[Any]:
    """All events of Gradio's queue that wait or run."""
    waiting = [event for one in queue.event_queue_per_concurrency_id.values() for event in one.queue]
    return waiting + [event for events in queue.active_jobs if events for event in events]


def count_events(queue: Any, address: str) -> int:
    """Events of one address that wait or run; see `bounds.name_address`."""
    clients = (event.request.client for event in list_events(queue))
    return sum(client is not None and name_address(client.host) == address for client in clients)


async def end_unheard(queue: Any, jobs: Jobs, visits: Visits) -> None:
    """End events of visitors who do not listen, and forget the jobs of those who have been away for long.

    Gradio does so when a stream of messages breaks off, but not when none was opened.
    """
    events = list_events(queue)
    absent_s = visits.find_absent({event.session_hash for event in events} | set(jobs.visitors))
    for event in events:
        unheard_s = min(absent_s.get(event.session_hash, 0.0), time.monotonic() - event.enqueue_time)
        if unheard_s > UNHEARD_S:
            await queue.clean_events(event_id=event._id)
            jobs.cancel(event.session_hash)
    for session in jobs.visitors:
        if absent_s.get(session, 0.0) > FORGOTTEN_S:
            jobs.forget(session)
