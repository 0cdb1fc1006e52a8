"""The training loop of every stage: seeded by step, resumable to the bit, stopped by signals, watched through files."""

from __future__ import annotations

import csv
import math
import os
import signal
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .peers import Peers
from .project import InputError

_LOG_EVERY = 25
_SAVE_EVERY_S = 600.0


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: a linear warm-up, a plateau, a cosine fall.

    Attributes:
        steps: length of the stage.
        peak: learning rate of the plateau.
        warmup: steps until the peak.
        fall: share of the steps, at the end, over which the rate falls to `floor`.
        floor: share of the peak that is left at the end.
    """

    steps: int
    peak: float
    warmup: int = 100
    fall: float = 0.4
    floor: float = 0.02

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = min(1.0, (step + 1) / max(self.warmup, 1))
        start = self.steps * (1.0 - self.fall)
        progress = min(max((step - start) / max(self.steps - start, 1), 0.0), 1.0)
        return self.peak * rising * (self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


class Stage(ABC):
    """What a stage trains and how.

    Attributes:
        name: of its files.
        modules: what is trained, by name; their parameters that require gradients.
        schedule: of the learning rate.
        averaging: largest decay per step of the averaged weights, which are what other stages use.
        validate_every_s: seconds between validations.
    """

    name: str
    modules: nn.ModuleDict
    schedule: Schedule
    averaging: float = 0.999
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-3
    validate_every_s: float = 900.0

    @abstractmethod
    def loss(self, step: int, random: np.random.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch, and parts of it to be logged; all that is random comes from `random`."""

    @abstractmethod
    def validate(self, picture: Path) -> Mapping[str, float]:
        """Measure the modules as they are on held-out puppets, and draw a picture of it."""

    def step_random(self, seed: int, step: int, rank: int = 0) -> np.random.Generator:
        """Random numbers of a step, the same however often the training was interrupted before it."""
        own = [rank] if rank else []
        return np.random.default_rng([seed, zlib.crc32(self.name.encode()), step, *own])


class StopSignal:
    """Whether the process was asked to end: SIGTERM and SIGINT let the step under way finish and be saved."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[StopSignal]:
        """Take the signals over for a while."""
        before = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


class Averages:
    """Exponential moving averages of a stage's weights."""

    def __init__(self, modules: nn.Module, decay: float) -> None:
        self._live = [tensor for tensor in modules.state_dict().values() if tensor.is_floating_point()]
        self._names = [name for name, tensor in modules.state_dict().items() if tensor.is_floating_point()]
        self._average = [tensor.detach().clone() for tensor in self._live]
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights behind a step in; early averages are short."""
        decay = min(self._decay, (1.0 + step) / (10.0 + step))
        torch._foreach_lerp_(self._average, self._live, 1.0 - decay)

    def state(self) -> dict[str, Tensor]:
        return dict(zip(self._names, self._average, strict=True))

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the modules have the averages for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for live, average in zip(self._live, self._average, strict=True):
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)


def state_path(folder: Path, name: str) -> Path:
    """Where the resumable state of a stage lies."""
    return folder / f"{name}.pt"


def read_state(folder: Path, name: str) -> dict[str, Any] | None:
    """The state of a stage, or None where it has not begun."""
    path = state_path(folder, name)
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def is_finished(folder: Path, stage: Stage) -> bool:
    """Whether a stage has done all of its steps."""
    state = read_state(folder, stage.name)
    return state is not None and int(state["step"]) >= stage.schedule.steps


def load_averages(folder: Path, name: str, modules: nn.Module) -> int:
    """Give modules the averaged weights of a stage, finished or not.

    Returns:
        Its steps so far.

    Raises:
        InputError: the stage has not begun.
    """
    state = read_state(folder, name)
    if state is None:
        raise InputError(f"{state_path(folder, name)} does not exist: train the stage {name!r} first")
    modules.load_state_dict(state["averages"], strict=True)
    return int(state["step"])


class Training:
    """One stage in training, with its files.

    Args:
        stage: what is trained; it goes on from the state in the folder, if there is one.
        folder: of states, loss curves and pictures.
        seed: of everything that is random.
        peers: processes that train it together.
    """

    def __init__(self, stage: Stage, folder: Path, seed: int, peers: Peers | None = None) -> None:
        self.stage = stage
        self._peers = peers or Peers()
        self._folder = folder
        self._seed = seed
        self._parameters = [one for one in stage.modules.parameters() if one.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=0.0, betas=stage.betas, weight_decay=stage.weight_decay, fused=False
        )
        self._averages = Averages(stage.modules, stage.averaging)
        self.step = 0
        self._trained_s = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        state = read_state(folder, stage.name)
        if state is not None:
            self._resume(state)
        self._curve = CurveFile(folder / f"{stage.name}.csv", self.step)

    def _resume(self, state: Mapping[str, Any]) -> None:
        self.stage.modules.load_state_dict(state["modules"])
        self._averages.load(state["averages"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self._trained_s = int(state["step"]), float(state["trained_s"])

    def save(self) -> None:
        """Write the whole resumable state; an interrupted write leaves the one before."""
        if self._peers.rank:
            return
        state = {
            "modules": self.stage.modules.state_dict(),
            "averages": self.stage.modules.state_dict() | self._averages.state(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "trained_s": self._trained_s,
            "seed": self._seed,
        }
        path = state_path(self._folder, self.stage.name)
        part = path.with_name(f".{path.name}.part")
        torch.save(state, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        self._curve.flush()

    def advance(self, stop: StopSignal | None = None) -> float:
        """Do one step.

        Args:
            stop: is requested behind the step if any of the processes was asked to stop.

        Returns:
            Its loss.
        """
        stage, rate = self.stage, self.stage.schedule.rate(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        started_s = time.monotonic()
        stage.modules.train()
        loss, parts = stage.loss(self.step, stage.step_random(self._seed, self.step, self._peers.rank))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        asked = stop is not None and stop.requested
        mean, stopped = self._peers.average(self._parameters, loss.detach(), asked)
        if stop is not None and stopped:
            stop.requested = True
        norm = nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._averages.update(self.step)
        seconds = time.monotonic() - started_s
        self._trained_s += seconds
        numbers = {name: value.item() for name, value in parts.items()}
        self._curve.add(self.step, mean, {"norm": norm.item(), "seconds": seconds, **numbers})
        self.step += 1
        return mean

    def validate(self) -> Mapping[str, float]:
        """Measure the averaged weights."""
        self.stage.modules.eval()
        with self._averages.in_place(), torch.no_grad():
            numbers = self.stage.validate(self._folder / f"{self.stage.name}.png")
        with (self._folder / f"{self.stage.name}-validation.csv").open("a", encoding="utf-8") as file:
            file.write(",".join([str(self.step), *(f"{name}={value:.4f}" for name, value in numbers.items())]) + "\n")
        return numbers

    def run(self, stop: StopSignal, *, until: int | None = None) -> bool:
        """Train until the stage is finished, or until a step, or until it is stopped; the state is saved.

        Returns:
            Whether the stage is finished.
        """
        last = min(self.stage.schedule.steps, self.stage.schedule.steps if until is None else until)
        saved_s = validated_s = time.monotonic()
        while self.step < last and not stop.requested:
            self.advance(stop)
            now_s = time.monotonic()
            if self._peers.rank:
                continue
            if self.step % _LOG_EVERY == 0:
                self._report()
            if now_s - saved_s > _SAVE_EVERY_S:
                self.save()
                saved_s = now_s
            if now_s - validated_s > self.stage.validate_every_s:
                self._report_validation()
                validated_s = time.monotonic()
        finished = self.step >= self.stage.schedule.steps
        self.save()
        if finished and not self._peers.rank:
            self._report_validation()
        return finished

    def _report(self) -> None:
        numbers = self._curve.recent(_LOG_EVERY)
        text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        _log(f"{self.stage.name} {self.step}/{self.stage.schedule.steps}  {text}  total {self._trained_s / 60:.1f} min")

    def _report_validation(self) -> None:
        numbers = self.validate()
        text = "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        _log(f"{self.stage.name} {self.step} held out: {text}")


def _log(text: str) -> None:
    print(time.strftime("%H:%M:%S "), text, flush=True)


class CurveFile:
    """Losses of a stage, one CSV row per step; rows behind the step that training goes on from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._rows: list[dict[str, float]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
            self._rows = [row for row in rows if row["step"] < step]

    def add(self, step: int, loss: float, more: Mapping[str, float]) -> None:
        self._rows.append({"step": step, "loss": loss, **more})

    def recent(self, count: int) -> dict[str, float]:
        """Means over the last rows."""
        rows = self._rows[-count:]
        names = [name for name in rows[-1] if name != "step"]
        return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}

    def flush(self) -> None:
        """Write all rows; an interrupted write leaves the file before."""
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        part = self._path.with_name(f".{self._path.name}.part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            for row in self._rows:
                writer.writerow({name: int(value) if name == "step" else repr(value) for name, value in row.items()})
        part.replace(self._path)


def require(condition: bool, message: str) -> None:
    """Raise an InputError with the message unless the condition holds."""
    if not condition:
        raise InputError(message)
