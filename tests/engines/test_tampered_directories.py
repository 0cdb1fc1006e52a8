"""Engine directories whose manifest was made to fit the damage: the hashes cannot tell, loading and running must.

Each network is loaded and run in a process that reports on one directory after the other: a crash would leave the rest
without a report.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from dispose_rt.engines.manifest import FILE_NAME
from dispose_rt.errors import EngineError, ManifestError
from tests.engines.damaged_directory import (
    Damage,
    filled,
    link_copy,
    put_file,
    read_body,
    rehash,
    sign,
    signed,
    truncated,
)
from tests.golden_case import GoldenCase

NETWORK = "point_encoder"
ENGINE = f"{NETWORK}.onnx"
AGAIN = "dispose-rt build --weights WEIGHTS --output"


def of_another_network(folder: Path) -> None:
    put_file(folder / ENGINE, (folder / "pose_net.onnx").read_bytes())


def graph_changed(change: Callable[[onnx.ModelProto], None]) -> Damage:
    def damage(folder: Path) -> None:
        model = onnx.load_from_string((folder / ENGINE).read_bytes())
        change(model)
        put_file(folder / ENGINE, model.SerializeToString())

    return damage


def weights_set_to(value: float) -> Damage:
    """One number of the largest weight is no number any more."""

    def change(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda one: np.prod(one.dims))
        array = numpy_helper.to_array(weight).copy()
        array.flat[array.size // 2] = value
        weight.CopyFrom(numpy_helper.from_array(array, weight.name))

    return graph_changed(change)


def output_renamed(model: onnx.ModelProto) -> None:
    [node] = [node for node in model.graph.node if "point_features_0" in node.output]
    node.output[list(node.output).index("point_features_0")] = "surprise"
    model.graph.output[0].name = "surprise"


def output_dropped(model: onnx.ModelProto) -> None:
    del model.graph.output[0]


def static_batch(model: onnx.ModelProto) -> None:
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 18


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Teleport"


def unknown_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9999


def cyclic(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def external(location: str, keep: Callable[[bytes], bytes] | None = None) -> Damage:
    """Move the weights into a file of their own, as engines above 1 GiB have it, and damage that one."""

    def damage(folder: Path) -> None:
        model = onnx.load_from_string((folder / ENGINE).read_bytes())
        (folder / ENGINE).unlink()
        onnx.save_model(model, folder / ENGINE, save_as_external_data=True, location=f"{ENGINE}.data", size_threshold=0)
        weights = folder / f"{ENGINE}.data"
        if keep is not None:
            weights.write_bytes(keep(weights.read_bytes()))
        body = read_body(folder)
        files = body["networks"][NETWORK]["files"]
        if keep is not None:
            files.append({**files[0], "path": f"{ENGINE}.data"})
        else:
            weights.unlink()
        put_file(folder / FILE_NAME, json.dumps(body).encode())
        if location != f"{ENGINE}.data":
            content = (folder / ENGINE).read_bytes().replace(f"{ENGINE}.data".encode(), location.encode())
            put_file(folder / ENGINE, content)

    return damage


def sizes_said(**values: int) -> Damage:
    """The manifest states other sizes than the engines have."""

    def damage(folder: Path) -> None:
        body = read_body(folder)
        body["sizes"] |= values
        put_file(folder / FILE_NAME, json.dumps(body).encode())

    return damage


def precision_said(folder: Path) -> None:
    signed("precision", value="fp16")(folder)
    signed("networks", NETWORK, "compute_dtype", value="float16")(folder)


Report = tuple[str, str]
"""Name of an error's class, and its text."""

CANNOT_LOAD = "cannot load"
DIFFER = "file and contract differ"
NON_FINITE = f"{NETWORK} returned non-finite values in float32: point_features_.*checkpoint"

#: damage, network to try, words of the error
CASES: dict[str, tuple[Damage, str, str]] = {
    **{
        f"cut to {name}": (truncated(ENGINE, keep), NETWORK, CANNOT_LOAD)
        for name, keep in {
            "1 byte": lambda size: 1,
            "half": lambda size: size // 2,
            "all but a byte": lambda size: size - 1,
        }.items()
    },
    "zeros": (filled(ENGINE, bytes), NETWORK, CANNOT_LOAD),
    "ones": (filled(ENGINE, lambda size: b"\xff" * size), NETWORK, CANNOT_LOAD),
    "noise": (filled(ENGINE, np.random.default_rng(0).bytes), NETWORK, CANNOT_LOAD),
    "a TensorRT plan": (filled(ENGINE, lambda size: b"ptrt" + bytes(size)), NETWORK, CANNOT_LOAD),
    "a pt2 package": (filled(ENGINE, lambda size: b"PK\x03\x04" + bytes(size)), NETWORK, CANNOT_LOAD),
    "a web page": (filled(ENGINE, lambda size: b"<!DOCTYPE html>" * 99), NETWORK, CANNOT_LOAD),
    "another network": (of_another_network, NETWORK, f"{DIFFER}.*point_encoder: the engine lacks"),
    "another output name": (graph_changed(output_renamed), NETWORK, f"{DIFFER}.*a tensor surprise too many"),
    "an output less": (graph_changed(output_dropped), NETWORK, f"{DIFFER}.*lacks the tensor point_features_0"),
    "a static batch": (
        graph_changed(static_batch),
        NETWORK,
        rf"{DIFFER}.*\[18, 96\], expected.*\[points, 96\]",
    ),
    "an unknown operator": (graph_changed(unknown_operator), NETWORK, f"{CANNOT_LOAD}.*Teleport"),
    "an unknown opset": (graph_changed(unknown_opset), NETWORK, CANNOT_LOAD),
    "a cycle": (graph_changed(cyclic), NETWORK, CANNOT_LOAD),
    "a weight is NaN": (weights_set_to(np.nan), NETWORK, NON_FINITE),
    "a weight is infinite": (weights_set_to(np.inf), NETWORK, NON_FINITE),
    "weights file missing": (external(f"{ENGINE}.data"), NETWORK, f"{CANNOT_LOAD}|takes its data from .* not listed"),
    "weights file empty": (external(f"{ENGINE}.data", lambda content: content[:1]), NETWORK, CANNOT_LOAD),
    "weights file cut": (external(f"{ENGINE}.data", lambda content: content[:-1]), NETWORK, CANNOT_LOAD),
    "weights file elsewhere": (external("../" * 9 + "etc/passwd", bytes), NETWORK, CANNOT_LOAD),
    "another tile": (
        sizes_said(tile=8),
        "unet",
        rf"{DIFFER}.*latents is float32 \[7, 4,.*expected.*\[8, 4, 8, 8\]",
    ),
    "another width": (sizes_said(width=128), "pose_net", rf"{DIFFER}.*64, 64\], expected.*64, 128\]"),
    "other channels": (sizes_said(dift=100), NETWORK, rf"{DIFFER}.*, 96\], expected float32 \[points, 100\]"),
    "another precision": (precision_said, NETWORK, f"{DIFFER}.*is float32.*expected float16"),
}

_TRIALS = """
import json, sys
from dispose_rt import Animator
from dispose_rt.engines.open import open_engine
from dispose_rt.contract import NETWORKS
from dispose_rt.doctor.trials import sample_inputs
from dispose_rt.engines.manifest import read_manifest

for folder, network in json.load(sys.stdin):
    try:
        Animator(folder).close()
        manifest = read_manifest(folder)
        spec, record = NETWORKS[network], manifest.networks[network]
        dynamic = dict.fromkeys(spec.dynamic, 2)
        open_engine(manifest, network).run(sample_inputs(spec, manifest.sizes, record.compute_dtype, dynamic))
        error = None
    except Exception as caught:
        error = caught
    print(json.dumps([type(error).__name__, str(error)]), flush=True)
"""


def report_on(trials: list[tuple[Path, str]]) -> list[Report]:
    """Try directories in another process; what became of each: name of the error's class, and its text."""
    names = json.dumps([(str(folder), network) for folder, network in trials])
    done = subprocess.run([sys.executable, "-c", _TRIALS], input=names, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"the process crashed after {done.stdout.count(chr(10))} reports: {done.stderr[-2000:]}"
    )
    return [(kind, text) for kind, text in map(json.loads, done.stdout.splitlines())]


def test_tampered_directories(golden_engines: Callable[..., Path], tmp_path: Path) -> None:
    engines = golden_engines(GoldenCase("one_tile_64"))
    trials = [(link_copy(engines, tmp_path / "undamaged"), NETWORK)]
    for number, (damage, network, _) in enumerate(CASES.values()):
        folder = link_copy(engines, tmp_path / str(number))
        damage(folder)
        rehash(folder, network)
        sign(folder)
        trials.append((folder, network))
    undamaged, *reports = report_on(trials)
    assert undamaged == ("NoneType", "None")
    failures = []
    for (name, (_, network, words)), (kind, text) in zip(CASES.items(), reports, strict=True):
        helps = AGAIN in text or "build the engines again" in text
        if not (
            kind in (EngineError.__name__, ManifestError.__name__)
            and network in text
            and re.search(words, text)
            and helps
        ):
            failures.append(f"{name}: {kind}: {text}")
    assert failures == []
