"""A record as text, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .networks import describe_batch

_BACKEND_VERSIONS = {
    "onnxruntime": ("onnxruntime",),
    "tensorrt": ("tensorrt", "cuda-python"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "cuda-python"),
    "aotinductor": ("torch", "cuda-python"),
}
"""Distributions whose versions decide how fast a backend is."""

NOISY = 0.1
"""Runs that differ by more than this share of their median deserve a word."""


def head_lines(engines: Mapping[str, Any], device: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """What is measured: the engines, where they run, and the clip; parts of a record."""
    sizes = engines["sizes"]
    what = f"{engines['backend']} {engines['precision']}, {sizes['width']}x{sizes['height']}"
    yield f"engines    {engines['folder']}: {what}, tiles of {sizes['tile']} frames"
    yield f"device     {device['opened']}: {device['name']}"
    yield f"clip       {settings['clip']}"
    tiles = ""
    if "tiles" in settings:
        many = f"{settings['tiles']} tiles that overlap by {settings['overlap']}"
        tiles = ", 1 tile" if settings["tiles"] == 1 else f", {many}"
    yield f"settings   {settings['steps']} steps, guidance {settings['guidance_scale']:g}{tiles}"


def summary_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Stages, the whole, the first frame, memory; medians and spreads of the measured runs."""
    summary, runs, tiles = record["summary"], len(record["runs"]), record["settings"]["tiles"]
    total_s = summary["total_s"]["median"]
    yield f"  {'stage':<18}{'median':>12}{'spread':>14}{'share':>10}"
    for stage, numbers in summary["stages_s"].items():
        yield f"{_seconds(stage, numbers)}{100 * numbers['median'] / total_s:9.1f} %"
    yield f"{_seconds('total', summary['total_s'])}{100:9.1f} %"
    yield _seconds("per frame", summary["s_per_frame"])
    yield _seconds("first frame after", summary["first_frame_s"])
    memory = summary["peak_bytes"]
    yield f"  {'most memory':<18}{memory['median'] / 1e6:9.1f} MB{memory['spread'] / 1e6:11.1f} MB"
    milliseconds = f"{record['tile_step_s'] * 1e3:9.3f} ms"
    yield f"  {'tile-step':<18}{milliseconds}   the denoise stage / steps / tiles, {tiles} of them"
    yield f"  {'graph':<20}{_describe_graph(record['graph'], tiles)}"
    warm_up_s = record["warm_up"]["total_s"]
    what = "one run" if runs == 1 else f"medians of {runs} runs"
    yield (
        f"{what}, after a warm-up of {warm_up_s:.2f} s, of which {record['load_s']:.2f} s to load; a spread is the "
        "largest minus the smallest"
    )
    if runs == 1:
        yield "note: one run has no spread; --runs 3 or more tells speed from noise"
    elif summary["total_s"]["spread"] > NOISY * total_s:
        share = 100 * summary["total_s"]["spread"] / total_s
        yield f"note: the runs differ by {share:.0f} % of their median; close other programs, or pass more --runs"


def _seconds(label: str, numbers: Mapping[str, float]) -> str:
    return f"  {label:<18}{numbers['median']:10.4f} s {numbers['spread']:11.4f} s"


def _describe_graph(graph: Mapping[str, Any], tiles: int) -> str:
    if not graph["captured"]:
        return f"NOT captured: {graph['problem']}"
    if tiles == 1:
        return "captured"
    return "captured: a whole step" if graph["launches_per_step"] == 1 else "captured: each network of a tile"


def length_lines(lengths: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How the time grows with the clip; nothing where no lengths were measured."""
    if lengths:
        yield "clips of other lengths:"
        yield f"  {'frames':>6}{'tiles':>7}{'denoise':>14}{'total':>14}{'per frame':>14}{'most memory':>16}"
    for one in lengths:
        denoise_s, total_s, s_per_frame = (
            one["stages_s"]["denoise"]["median"],
            one["total_s"]["median"],
            one["s_per_frame"]["median"],
        )
        yield (
            f"  {one['frames']:>6}{one['tiles']:>7}{denoise_s:12.4f} s{total_s:12.4f} s{s_per_frame:12.4f} s"
            f"{one['peak_bytes']['median'] / 1e6:13.1f} MB"
        )


def network_lines(networks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Every network by itself; nothing where they were not measured."""
    if networks:
        yield "networks, each by itself at its largest batch:"
    for one in networks:
        batch = describe_batch(one["batch"]) or "1"
        yield (
            f"  {one['network']:<20}{one['seconds'] * 1e3:10.3f} ms {one['spread_s'] * 1e3:10.3f} ms   batch {batch}; "
            f"{one['backend']} on {one['device']}"
        )


def foot_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """The machine, and the command that measures the same again."""
    machine, versions = record["machine"], record["versions"]
    gpus = [f"{gpu['name']} (driver for CUDA {gpu['driver_version']})" for gpu in machine["gpus"]]
    parts = [machine["cpu"], f"{machine['memory_bytes'] / 1e9:.0f} GB", *gpus, machine["platform"]]
    yield f"machine    {'; '.join(parts)}"
    names = ("python", "dispose-rt", "numpy", *_BACKEND_VERSIONS[record["engines"]["backend"]])
    yield f"versions   {', '.join(f'{name} {versions[name]}' for name in names if name in versions)}"
    yield f"measured   {record['date']}"
    yield f"reproduce  {record['command']}"
