"""What a host program has chosen of torch's numerics neither reaches our packages nor is changed by them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dispose_rt.engines.backends.torch_numerics import BENCHMARK_VARIABLE, ExactNumerics
from tests.every import each


def _set(place: Any, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(place, name, value)


CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul
HOSTS = (
    ("nothing", lambda: None),
    ("all operators", _set(torch.backends, "fp32_precision", "tf32")),
    ("one operator", _set(MATMUL, "fp32_precision", "tf32")),
    ("convolutions", _set(CUDNN.conv, "fp32_precision", "tf32")),
    ("products by an older name", lambda: torch.set_float32_matmul_precision("high")),
    ("convolutions by an older name", _set(CUDNN, "allow_tf32", False)),
    ("the fastest convolution", _set(CUDNN, "benchmark", True)),
)


def _read(value: Callable[[], object]) -> object:
    try:
        return value()
    except RuntimeError:  # torch refuses to say once both of its interfaces were used
        return "refused"


def choices() -> list[object]:
    return [
        CUDNN.conv.fp32_precision,
        MATMUL.fp32_precision,
        CUDNN.enabled,
        CUDNN.benchmark,
        CUDNN.deterministic,
        MATMUL.allow_fp16_reduced_precision_reduction,
        MATMUL.allow_bf16_reduced_precision_reduction,
        torch.backends.cudnn.rnn.fp32_precision,
        _read(lambda: CUDNN.allow_tf32),
        _read(lambda: MATMUL.allow_tf32),
        _read(torch.get_float32_matmul_precision),
    ]


EXACT = ["ieee", "ieee", True, False, True, False, False]


def in_another_process(work: Callable[[], None]) -> None:
    """Do something to torch's choices that no interface of torch undoes."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0, "see the process's own message"


@each(host__choose=HOSTS)
def test_the_choices_of_the_host_are_overruled_and_restored(host: str, choose: Callable[[], None]) -> None:
    def work() -> None:
        choose()
        before, numerics = choices(), ExactNumerics(torch)
        for _ in range(2):
            with numerics:
                assert choices()[: len(EXACT)] == EXACT, (host, choices())
                torch.nn.functional.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2))  # reads them
            assert choices() == before, (host, before, choices())

    in_another_process(work)


def test_threads_leave_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    before, numerics, other = choices(), ExactNumerics(torch), ExactNumerics(torch)
    entered, may_leave = threading.Event(), threading.Event()

    def run() -> None:
        with other:
            entered.set()
            may_leave.wait(10)

    with numerics:
        thread = threading.Thread(target=run)
        thread.start()
        assert entered.wait(10)
    inside = choices()
    may_leave.set()
    thread.join()
    assert inside[: len(EXACT)] == EXACT
    assert choices() == before

    monkeypatch.setenv(BENCHMARK_VARIABLE, "1")
    with ExactNumerics(torch):
        assert choices()[3:5] == [True, False]
