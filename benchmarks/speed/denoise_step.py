"""Times one tile of one denoising step, ControlNet and UNet at full published size, in every way that it can be run.

    python benchmarks/speed/denoise_step.py [--json FILE] [--paths eager,compiled-graph] [--engines DIR]

Random weights, guidance on, 16 frames of 576x1024, half precision. The ways: eager PyTorch, torch.compile ("jit"),
AOTInductor packages, and the engines of a directory that was built with the same random weights; each as it is, and
replayed from a CUDA graph ("-graph"). One that fails is reported, and the next one runs. Errors are relative to eager
PyTorch in float32 from the same weights and inputs. Numbers are written after every way, and added to those that the
file holds.

Packages are compiled in two processes at once and kept in --packages; --compile-only ends after that.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from dispose_rt_export.compile.trace import sample_inputs
from dispose_rt_export.synthetic.random_weights import random_module
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.step_runners import EngineStep, Step, TorchStep, captured, load_packages
from benchmarks.speed.unfinished_directory import DENOISERS
from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("eager", "jit", "compiled", "engines")
PATHS = tuple(kind + graph for kind in KINDS for graph in ("", "-graph"))
DEFAULT_PATHS = ("eager", "eager-graph", "compiled", "compiled-graph")
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
TOY_CHANNELS, TOY_EMBED = (32, 64, 128, 128), 48
STEPS, NEW_FRAMES_PER_TILE = 25, 10  # the published settings: 25 steps, tiles of 16 that overlap by 6
WARM_UP, ROUNDS, MEASURE_S = 2, 10, 20.0


@dataclass(frozen=True)
class Setting:
    """Settings of a measurement."""

    device: str
    scale: str
    sizes: Sizes
    precision: str
    packages: Path
    engines: Path | None

    @property
    def compute_dtype(self) -> str:
        return DTYPES[self.precision]

    def package(self, network: str) -> Path:
        """Return the path of a package; its name holds everything that it depends on except the sources."""
        where = "sm{}{}".format(*torch.cuda.get_device_capability()) if self.device == "cuda" else "cpu"
        size = f"{self.sizes.width}x{self.sizes.height}x{self.sizes.tile}"
        version = torch.__version__.replace("+", "-")
        return self.packages / f"{network}-{self.scale}-{size}-{self.precision}-{where}-{version}.pt2"


@dataclass
class Measurement:
    """Results of one way; `problem` is the reason where there are none."""

    path: str
    problem: str | None = None
    prepare_s: float | None = None
    step_s: float | None = None
    spread_s: float | None = None
    rounds: int = 0
    tflops: float | None = None
    s_per_frame: float | None = None
    memory_bytes: int | None = None
    error_to_float32: float | None = None
    error_to_eager: float | None = None
    networks_s: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.step_s is None:
            return f"{self.path:<16} {self.problem}"
        parts = [f"{self.path:<16} {self.step_s * 1e3:9.2f} ms"]
        parts += [f"{name} {seconds * 1e3:.1f} ms" for name, seconds in self.networks_s.items()]
        for name, value, form in (
            ("TFLOP/s", self.tflops, "{:.0f}"),
            ("s/frame", self.s_per_frame, "{:.3f}"),
            ("GB", self.memory_bytes and self.memory_bytes / 1e9, "{:.1f}"),
            ("to float32", self.error_to_float32, "{:.1e}"),
            ("to eager", self.error_to_eager, "{:.1e}"),
        ):
            parts += [f"{form.format(value)} {name}"] if value is not None else []
        return "   ".join(parts)


class Budget:
    """Return the remaining seconds."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return self._end - time.monotonic()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit status: 1 if nothing could be measured."""
    arguments = _parse(argv)
    setting = _setting(arguments)
    budget = Budget(arguments.budget_seconds)
    torch.backends.cudnn.benchmark = True
    title = (_device_name(setting.device), f"torch {torch.__version__}", setting.scale, setting.precision)
    print(", ".join(title), flush=True)
    wanted = arguments.paths or [*DEFAULT_PATHS, *(PATHS[-2:] if setting.engines else ())]
    if arguments.compile_only or any(path.startswith("compiled") for path in wanted):
        compile_packages(setting, budget, arguments.force)
    if arguments.compile_only:
        return 0 if all(setting.package(name).exists() for name in DENOISERS) else 1
    results = measure_all(setting, wanted, budget, arguments.json)
    return 0 if any(result.step_s is not None for result in results) else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", choices=("full", "toy"), default="full", help="widths (default: full)")
    parser.add_argument("--size", default=None, metavar="WxH", help="default: 576x1024, or 64x128 for toys")
    parser.add_argument("--tile-frames", type=int, default=None, help="default: 16, or 4 for toys")
    parser.add_argument("--precision", choices=DTYPES, default=None, help="default: fp16 on a GPU, else fp32")
    parser.add_argument("--paths", type=_paths, help=f"comma-separated, of {', '.join(PATHS)}")
    parser.add_argument("--packages", type=Path, default=ROOT / "out" / "packages", metavar="DIR")
    parser.add_argument("--engines", type=Path, default=None, metavar="DIR", help="engine directory")
    parser.add_argument("--compile-only", action="store_true", help="compile the packages and end")
    parser.add_argument("--force", action="store_true", help="compile packages that are there already")
    parser.add_argument("--budget-seconds", type=float, default=3600, help="start nothing after this time")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    return parser.parse_args(argv)


def _paths(text: str) -> list[str]:
    paths = text.split(",")
    if unknown := [path for path in paths if path not in PATHS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is no way to run it; choose from {', '.join(PATHS)}")
    return paths


def _setting(arguments: argparse.Namespace) -> Setting:
    toy = arguments.scale == "toy"
    width, height = map(int, (arguments.size or ("64x128" if toy else "576x1024")).split("x"))
    sizes = Sizes(width, height, tile=arguments.tile_frames or (4 if toy else 16))
    if toy:
        sizes = replace(sizes, channels=TOY_CHANNELS, embed=TOY_EMBED)
    precision = arguments.precision or ("fp16" if arguments.device == "cuda" else "fp32")
    arguments.packages.mkdir(parents=True, exist_ok=True)
    return Setting(arguments.device, arguments.scale, sizes, precision, arguments.packages, arguments.engines)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def compile_packages(setting: Setting, budget: Budget, force: bool) -> None:
    """Compile missing packages, one process per network; processes that exceed the time are ended."""
    context = multiprocessing.get_context("spawn")
    missing = [name for name in DENOISERS if force or not setting.package(name).exists()]
    processes = {name: context.Process(target=_compile, args=(setting, name)) for name in missing}
    for process in processes.values():
        process.start()
    for name, process in processes.items():
        process.join(max(1.0, budget.left_s))
        if process.is_alive():
            process.kill()
            process.join()
            print(f"{name}: compiling took too long and was ended", flush=True)
        elif process.exitcode:
            print(f"{name}: compiling failed with exit status {process.exitcode}", flush=True)


def _compile(setting: Setting, network: str) -> None:
    from dispose_rt_export.compile.aotinductor import compile_package

    start = time.perf_counter()
    module = random_module(network, setting.device, _dtype(setting), scale=setting.scale)
    path = setting.package(network)
    part = path.with_name(f"part-{path.name}")
    spec, dtype = NETWORKS[network], setting.compute_dtype
    compile_package(module, spec, setting.sizes, dtype, device=setting.device, output=part)
    part.replace(path)
    print(f"{network}: compiled in {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e9:.2f} GB", flush=True)


def _dtype(setting: Setting) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, setting.compute_dtype)
    return dtype


def measure_all(setting: Setting, wanted: Sequence[str], budget: Budget, path: Path | None) -> list[Measurement]:
    """Measure one way after the other, printing and storing each."""
    inputs = step_inputs(setting)
    with torch.inference_mode():
        expected, flops = run_float32(setting, inputs)
    print(f"one tile step: {flops / 1e12:.1f} TFLOP", flush=True)
    results: list[Measurement] = []
    eager: Tensor | None = None
    for name in wanted:
        result = Measurement(name)
        if budget.left_s < 0:
            result.problem = "not started: no time is left"
        else:
            with _reported(result), torch.inference_mode():
                noise = _measure(result, setting, inputs, flops)
                result.error_to_float32 = relative_error(noise, expected)
                eager = noise if name == "eager" else eager
                result.error_to_eager = relative_error(noise, eager) if eager is not None else None
        print(result, flush=True)
        results.append(result)
        if path:
            store(path, setting, flops, results)
    return results


@contextmanager
def _reported(result: Measurement) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        result.problem = str(error)
    except Exception as error:  # compiled code may fail in any way; the other ways are measured all the same
        traceback.print_exc(limit=-6)
        lines = str(error).strip().splitlines() or [""]
        result.problem = f"{type(error).__name__}: {lines[0]}"


def step_inputs(setting: Setting) -> dict[str, Tensor]:
    """Return the inputs of both networks except the residuals, by name, on the device."""
    inputs: dict[str, Tensor] = {}
    for network in DENOISERS:
        drawn = sample_inputs(NETWORKS[network], setting.sizes, setting.compute_dtype, {})
        inputs |= {name: value.to(setting.device) for name, value in drawn.items() if not name.startswith("residual_")}
    return inputs


def run_float32(setting: Setting, inputs: dict[str, Tensor]) -> tuple[Tensor, int]:
    """Run eager PyTorch in float32. Returns the noise prediction and the number of operations of a step."""
    upcast = {name: value.float() for name, value in inputs.items()}
    step = TorchStep(_modules(setting, torch.float32), upcast)
    # its algorithms are not worth timing: it runs once
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    with exact, FlopCounterMode(display=False) as counter:
        step.run()
    return step.noise_pred().cpu(), counter.get_total_flops()


def _modules(setting: Setting, dtype: torch.dtype) -> list[torch.nn.Module]:
    return [random_module(name, setting.device, dtype, scale=setting.scale) for name in DENOISERS]


def _measure(result: Measurement, setting: Setting, inputs: dict[str, Tensor], flops: int) -> Tensor:
    """Fill in the numbers of one way. Returns its noise prediction, on the host."""
    kind, _, graph = result.path.partition("-")
    _release_memory(setting)
    used_before = _memory_in_use(setting)
    start = time.perf_counter()
    step = _make_step(kind, setting, inputs)
    try:
        if graph and setting.device != "cuda":
            raise InputError("needs a GPU")
        run = captured(step) if graph else step.run
        _timed(run, setting.device, 1)
        result.prepare_s = time.perf_counter() - start
        seconds = _timed(run, setting.device)
        result.step_s, result.rounds = statistics.median(seconds), len(seconds)
        result.spread_s = max(seconds) - min(seconds)
        result.tflops = flops / result.step_s / 1e12
        result.s_per_frame = STEPS * result.step_s / NEW_FRAMES_PER_TILE
        result.memory_bytes = _memory_in_use(setting) - used_before or None
        noise = step.noise_pred().float().cpu()
        if not graph:
            result.networks_s = {
                name: statistics.median(_timed(part, setting.device)) for name, part in step.parts().items()
            }
        return noise
    finally:
        step.close()


def _make_step(kind: str, setting: Setting, inputs: dict[str, Tensor]) -> Step:
    if kind == "eager":
        return TorchStep(_modules(setting, _dtype(setting)), inputs)
    if kind == "jit":
        modules = _modules(setting, _dtype(setting))
        return TorchStep([torch.compile(module, dynamic=False) for module in modules], inputs)
    if kind == "compiled":
        device = "cuda:0" if setting.device == "cuda" else "cpu"
        return TorchStep(load_packages([setting.package(name) for name in DENOISERS], device), inputs)
    if setting.engines is None:
        raise InputError("no engine directory was given")
    return EngineStep(setting.engines, inputs)


def _memory_in_use(setting: Setting) -> int:
    """Return the GPU's used bytes, including the allocator's reserve; 0 on the CPU."""
    if setting.device != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def _release_memory(setting: Setting) -> None:
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()


def _timed(run: Callable[[], None], device: str, rounds: int = ROUNDS) -> list[float]:
    """Return the seconds of every run after the warm-up; slow ones run less often."""
    seconds: list[float] = []
    begin = time.perf_counter()
    for turn in range(WARM_UP + rounds):
        if device == "cuda":
            start, end = (_event() for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        else:
            before = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - before)
        if turn >= WARM_UP and time.perf_counter() - begin > MEASURE_S:
            break
    return seconds[WARM_UP:]


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Return the Euclidean norm of the difference over that of the expected values."""
    return float(torch.linalg.norm(ours.double() - expected.double()) / torch.linalg.norm(expected.double()))


def store(path: Path, setting: Setting, flops: int, results: Sequence[Measurement]) -> None:
    """Write the numbers, keeping those of earlier runs of other ways."""
    kept = json.loads(path.read_text())["paths"] if path.exists() else {}
    record: dict[str, Any] = {
        "device": _device_name(setting.device),
        "torch": torch.__version__,
        "scale": setting.scale,
        "precision": setting.precision,
        "sizes": asdict(setting.sizes),
        "flops": flops,
        "paths": kept | {result.path: asdict(result) for result in results},
    }
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
