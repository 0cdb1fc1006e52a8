"""Several processes that train one model: each takes a part of the batch, gradients are averaged."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn

_PATIENCE = timedelta(hours=2)
"""One process validates and saves while the others wait."""


class Peers:
    """The processes that train one model, seen from one of them.

    Attributes:
        rank: of this process; 0 writes all files.
        count: of the processes.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count

    def share(self, batch: int) -> int:
        """How many rows of a batch are this process's; at least 1."""
        return max(batch // self.count, 1)

    def average(self, parameters: Sequence[nn.Parameter], *numbers: Tensor | float) -> list[float]:
        """Average gradients in place, and numbers.

        Args:
            parameters: whose gradients are averaged; one without takes part with zero.
            numbers: averaged over the processes as well.
        """
        extra = torch.tensor([float(number) for number in numbers])
        if self.count == 1:
            return [float(number) for number in extra]
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        flat = torch.cat([extra, *(gradient.flatten().cpu() for gradient in gradients)])
        distributed.all_reduce(flat)
        flat /= self.count
        offset = len(extra)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            stop = offset + gradient.numel()
            parameter.grad = flat[offset:stop].view_as(gradient).to(gradient.device)
            offset = stop
        return [float(number) for number in flat[: len(extra)]]


def run_in_peers(work: Callable[..., int], count: int, *arguments: Any) -> int:
    """Call `work(peers, *arguments)` in `count` processes; SIGTERM and SIGINT are handed on to all of them.

    Returns:
        The largest exit status.
    """
    if count == 1:
        return work(Peers(), *arguments)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_enter, args=(work, rank, count, port, arguments)) for rank in range(count)]
    for child in children:
        child.start()

    def hand_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    for child in children:
        child.join()
    return max(1 if child.exitcode is None or child.exitcode < 0 else child.exitcode for child in children)


def _enter(work: Callable[..., int], rank: int, count: int, port: int, arguments: tuple[Any, ...]) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count, timeout=_PATIENCE
    )
    try:
        status = work(Peers(rank, count), *arguments)
    finally:
        distributed.destroy_process_group()
    raise SystemExit(status)
