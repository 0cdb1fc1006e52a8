"""An ONNX file that would make ONNX Runtime open other files, or load native code, is refused before it is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dispose_rt.cli import main
from dispose_rt.engines import onnx_file
from dispose_rt.engines.backends import onnxruntime as backend
from dispose_rt.engines.backends.aotinductor_package import read_label
from dispose_rt.engines.manifest import Manifest, NetworkRecord, read_manifest, record_file, write_manifest
from dispose_rt.engines.onnx_file import find_foreign_parts
from dispose_rt.engines.open import Engines
from dispose_rt.errors import EngineError
from tests.engines.small_directory import write_directory
from tests.every import every_item


def write_model(path: Path, location: str = "", domain: str = "", deep: bool = False) -> None:
    """Write y = op(x, w), where w may lie in another file, and op may lie in the branch of an If."""
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    if location:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
        weight.external_data.add(key="length", value="64")
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], domain=domain)]
    inner = helper.make_graph(nodes, "g", [], [value], [weight])
    if deep:
        condition = numpy_helper.from_array(np.array(True), "c")
        branches: dict[str, Any] = {"then_branch": inner, "else_branch": inner}
        inner = helper.make_graph([helper.make_node("If", ["c"], ["y"], **branches)], "h", [], [value], [condition])
    inner.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4]))
    path.write_bytes(helper.make_model(inner).SerializeToString())


def with_model(folder: Path, listed: tuple[str, ...] = (), **model: Any) -> Manifest:
    """An engine directory whose `unet.onnx` is such a model; `listed` are the files of its record besides it."""
    manifest = write_directory(folder)
    write_model(folder / "unet.onnx", **model)
    files = tuple(record_file(folder, name) for name in ("unet.onnx", *listed) if (folder / name).exists())
    networks = {**manifest.networks, "unet": NetworkRecord(files, "key")}
    changed = Manifest(
        folder, "onnxruntime", "fp32", manifest.sizes, manifest.scheduler, networks, manifest.weights, manifest.versions
    )
    write_manifest(changed)
    return read_manifest(folder)


def test_what_the_manifest_does_not_list_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `inspect --verify`, and when the network is opened."""
    monkeypatch.setattr(backend.onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("it was opened"))
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "not listed": ({"location": "more.data"}, "'more.data', a file that is not listed"),
        "absolute": ({"location": "/etc/passwd"}, "'/etc/passwd', a file outside of its folder"),
        "upwards, in a branch": ({"location": "../a", "deep": True}, "'../a', a file outside of its folder"),
        "a library's operators": ({"domain": "evil"}, "operators of 'evil'"),
        "escapes": ({"domain": "\x1b[2J"}, r"operators of '\x1b[2J'"),
    }
    with every_item() as every:
        for number, (what, (model, words)) in enumerate(cases.items()):
            with every(what):
                manifest = with_model(tmp_path / f"{number}", **model)
                assert main(["inspect", "--verify", str(manifest.folder)]) == 1
                assert words in capsys.readouterr().err
                with pytest.raises(EngineError, match="is not opened") as caught:
                    Engines(manifest)("unet")
                assert words in str(caught.value)
        with every("listed, but a link to another folder"):
            (tmp_path / "aside").write_bytes(bytes(64))
            path = tmp_path / "linked" / "unet.onnx"
            path.parent.mkdir()
            write_model(path, location="unet.data")
            (path.parent / "unet.data").symlink_to(tmp_path / "aside")
            [line] = find_foreign_parts(path, ["unet.data"])
            assert "a link that leads to another folder" in line
            (path.parent / "unet.data").unlink()
            (path.parent / "unet.data").write_bytes(bytes(64))
            assert find_foreign_parts(path, ["unet.data"]) == []
        with every("no ONNX file"):
            for content in (b"", b"\xff" * 100, b"\x3a\xff\xff\x03", bytes(4) + b"ORTM" + bytes(50)):
                (tmp_path / "x.onnx").write_bytes(content)
                with pytest.raises(ValueError, match="it "):
                    find_foreign_parts(tmp_path / "x.onnx", ())
        with every("no regular file"):
            os.mkfifo(tmp_path / "pipe.onnx")
            for path in (tmp_path / "pipe.onnx", Path("/dev/zero")):  # either would be read for ever
                with pytest.raises(ValueError, match="no regular file"):
                    find_foreign_parts(path, ())
                with pytest.raises(EngineError, match="no regular file"):
                    read_label(path)
        with every("a function of the file itself"):
            function = helper.make_function(
                "own", "F", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], [helper.make_opsetid("", 17)]
            )
            graph = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="own")], "g", [], [])
            onnx.save(helper.make_model(graph, functions=[function]), tmp_path / "f.onnx")
            assert find_foreign_parts(tmp_path / "f.onnx", ()) == []
        with every("too many parts"):
            monkeypatch.setattr(onnx_file, "_MOST_FIELDS", 5)
            with pytest.raises(ValueError, match="more parts"):
                find_foreign_parts(tmp_path / "f.onnx", ())
        with every("a name that is no UTF-8"):
            monkeypatch.undo()
            manifest = with_model(tmp_path / "letters")
            path = manifest.folder / "unet.onnx"
            model = onnx.load(path)
            model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "frames"
            path.write_bytes(model.SerializeToString().replace(b"frames", b"fr\x86mes"))
            with pytest.raises(EngineError, match="ONNX Runtime cannot load"):
                Engines(manifest)("unet")
