"""From an ONNX file to a serialized TensorRT engine (a plan), with either flavour of TensorRT.

Networks are strongly typed: the graph says which precision each node computes in, and TensorRT changes none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dispose_rt.contract import NetworkSpec, Sizes
from dispose_rt.engines.backends.tensorrt_flavour import Flavour, load_flavour, name_dimensions
from dispose_rt.engines.signature import Signature, signature_differences
from dispose_rt.errors import EngineError, VerificationError
from dispose_rt.system.files import atomic_write
from dispose_rt.system.sealed_file import read_sealed, write_sealed

Progress = Callable[[str, int, int], None]
"""Called with a phase of the compiler, its finished steps and all its steps; from any thread."""

_MEMORY_HINT = "Close other programs, or build for a smaller --size or --tile-frames."
_WORKSPACE_HINT = "A layer may need more scratch memory than --workspace {0} allows: raise it, or leave it out."
_REBUILD_HINTS = {
    "MVMF": "Seen where sm_75 is a target and the network is very small: leave sm_75 out, or leave --target unset.",
    **dict.fromkeys(("out of memory", "Out of memory", "OutOfMemory", "insufficient workspace"), _MEMORY_HINT),
}
_OTHER_HINT = "Try it without --target and with --precision fp32; if that fails as well, reduce the graph."


class CompiledPlan(NamedTuple):
    """What the compiler told about a plan.

    Attributes:
        signature: dtype and shape of every input and output as the parser saw them, with names for dynamic dimensions.
        scratch_bytes: memory of the GPU that a run at the largest shapes needs beside weights, inputs and outputs; None
            where the compiler did not say.
    """

    signature: dict[str, Signature]
    scratch_bytes: int | None


def build_plan(
    onnx_path: Path,
    spec: NetworkSpec,
    sizes: Sizes,
    compute_dtype: str,
    *,
    flavour: str,
    targets: Sequence[str],
    timing_cache: Path | None,
    output: Path,
    workspace_mib: int | None = None,
    progress: Progress | None = None,
) -> CompiledPlan:
    """Compile one network.

    Args:
        onnx_path: the graph; weights may lie in a file beside it.
        spec: the contract that the graph must keep.
        sizes: resolves the contract's shapes.
        compute_dtype: dtype of tensors that the contract marks "compute".
        flavour: "tensorrt_rtx" or "tensorrt".
        targets: compute capabilities such as "sm_89"; empty for all that one plan of the flavour can serve.
        timing_cache: kept between builds by the flavour that has one; a damaged one is replaced.
        output: plan to write, under a temporary name first.
        workspace_mib: most scratch memory that a layer may take, in MiB; None leaves the limit to TensorRT.
        progress: called in the compiler's phases. Its exceptions end the build and are raised here.

    Raises:
        EngineError: TensorRT is missing, cannot read the graph, or cannot compile it; quotes what it said.
        VerificationError: the graph's tensors are not those of the contract.
        InputError: a target is unknown to the flavour.
        DeviceError: the flavour builds on a GPU, and there is none.
    """
    backend = load_flavour(flavour)
    backend.resolve_targets(targets)
    log = backend.create_log()
    builder = backend.create_builder(log)
    network = backend.create_network(builder)
    # the network refers to weights that the parser holds: it must live until the plan is built
    parser = _parse(backend, network, log, onnx_path, spec)
    _fix_shapes(network, spec, sizes)
    signature = _check_signature(backend, network, spec, sizes, compute_dtype)
    config = builder.create_builder_config()
    _configure(backend, builder, network, config, spec, sizes, targets)
    if workspace_mib is not None:
        config.set_memory_pool_limit(backend.trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    monitor = _create_monitor(backend, progress)
    config.progress_monitor = monitor
    timings = _load_timings(config, timing_cache) if timing_cache and backend.has_timing_cache else None
    plan = builder.build_serialized_network(network, config)
    if monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        raise EngineError(_explain_failure(backend, spec, log.quote(), workspace_mib))
    if timings is not None and timing_cache is not None:
        write_sealed(timing_cache, bytes(timings.serialize()))
    del config, network, parser, builder  # the weights, a second and third time
    _write(plan, output)
    return CompiledPlan(signature, log.scratch_bytes)


def _parse(backend: Flavour, network: Any, log: Any, path: Path, spec: NetworkSpec) -> Any:
    parser = backend.trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        problems = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
        raise EngineError(
            f"{spec.name}: {backend.name} {backend.version} cannot read {path}:\n"
            + ("\n".join(f"  - {problem}" for problem in problems) or log.quote())
        )
    return parser


def _describe(error: Any) -> str:
    """Return one problem of the parser in a line: the node, and what is wrong with it."""
    # what follows the first line is the same again, with the compiler's own source locations
    reason = next((line for line in error.desc().splitlines() if "Invalid Node" not in line), error.desc())
    if error.node() < 0:
        return str(reason)
    return f"node {error.node_name() or error.node()} ({error.node_operator()}): {reason}"


def _fix_shapes(network: Any, spec: NetworkSpec, sizes: Sizes) -> None:
    """Set open dimensions of inputs to the contract's numbers: published files may take any batch."""
    wanted = {tensor.name: sizes.resolve(tensor.shape) for tensor in spec.inputs}
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        ours, theirs = wanted.get(tensor.name, ()), tuple(tensor.shape)
        if len(ours) == len(theirs):
            pairs = zip(ours, theirs, strict=True)
            fixed = tuple(our if their == -1 and isinstance(our, int) else their for our, their in pairs)
            if fixed != theirs:
                tensor.shape = fixed


def _check_signature(
    backend: Flavour, network: Any, spec: NetworkSpec, sizes: Sizes, compute_dtype: str
) -> dict[str, Signature]:
    """Check the parser's tensors against the contract, and return them."""
    ours = {tensor.name: tensor.shape for tensor in (*spec.inputs, *spec.outputs)}
    found = [network.get_input(index) for index in range(network.num_inputs)]
    found += [network.get_output(index) for index in range(network.num_outputs)]
    signature = {}
    for tensor in found:
        shape = name_dimensions(tensor.shape, ours.get(tensor.name, ()), spec.dynamic)
        signature[tensor.name] = (backend.dtype_name(tensor.dtype), shape)
    if lines := signature_differences(spec.name, sizes, compute_dtype, signature):
        raise VerificationError(f"{backend.name} sees other tensors than the contract's: " + "; ".join(lines))
    return signature


def _configure(
    backend: Flavour,
    builder: Any,
    network: Any,
    config: Any,
    spec: NetworkSpec,
    sizes: Sizes,
    targets: Sequence[str],
) -> None:
    # float32 means float32: TF32 keeps 10 bits of the mantissa, no more than float16, and is on by default
    config.clear_flag(backend.trt.BuilderFlag.TF32)
    # one stream: all engines of a directory share their scratch memory, and a run is captured from one stream
    config.max_aux_streams = 0
    backend.configure(config, targets)
    if spec.dynamic:
        profile = builder.create_optimization_profile()
        for name, smallest, largest in _profile_shapes(spec, sizes):
            profile.set_shape(name, smallest, largest, largest)  # calls are full but for the last one of a clip
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{spec.name}: {backend.name} refuses the range of its dynamic dimensions")


def _profile_shapes(spec: NetworkSpec, sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    smallest = dict.fromkeys(spec.dynamic, 1)
    largest = {symbol: sizes.limit(symbol) for symbol in spec.dynamic}
    for tensor in spec.inputs:
        if any(dim in spec.dynamic for dim in tensor.shape):
            bounds = [tuple(map(int, sizes.resolve(tensor.shape, ends))) for ends in (smallest, largest)]
            yield tensor.name, bounds[0], bounds[1]


def _create_monitor(backend: Flavour, progress: Progress | None) -> Any:
    trt = backend.trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Forwards phases. An exception must not reach the compiler's own frames: it is kept, and ends the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._forward(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._forward(phase_name, step + 1)
            return self.failure is None

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _forward(self, phase: str, done: int) -> None:
            try:
                if progress is not None and self.failure is None:
                    progress(phase, done, self._steps.get(phase, done))
            except BaseException as error:
                self.failure = error

    return Monitor()


def _load_timings(config: Any, path: Path) -> Any:
    """Attach the timings of earlier builds, or an empty cache; the caller saves it after the build."""
    kept = read_sealed(path)
    if kept is None and path.exists():
        print(f"{path} is damaged and is replaced; builds measure their kernels again", flush=True)
    timings = config.create_timing_cache(kept or b"")
    if not config.set_timing_cache(timings, False):  # of another GPU, driver or version
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, False)
    return timings


def _explain_failure(backend: Flavour, spec: NetworkSpec, quoted: str, workspace_mib: int | None) -> str:
    hint = next((hint for words, hint in _REBUILD_HINTS.items() if words in quoted), _OTHER_HINT)
    if hint == _MEMORY_HINT and workspace_mib is not None:
        hint = _WORKSPACE_HINT.format(workspace_mib)
    return f"{spec.name}: {backend.name} {backend.version} cannot compile it:\n{quoted}\n{hint}"


def _write(plan: Any, output: Path) -> None:
    with atomic_write(output) as file:
        file.write(memoryview(plan))
