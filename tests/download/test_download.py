"""Checkpoints fetched from a hub on this machine that fails in every way a hub can."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub.file_download
import pytest
from filelock import FileLock
from huggingface_hub import constants

from dispose_rt.cli import main
from dispose_rt.cli.build import import_exporter
from dispose_rt.cli.download import _Bar
from dispose_rt.contract import NETWORKS
from dispose_rt.download import Plan, download, inspect_folder, make_plan
from dispose_rt.download.errors import GateClosedError, OfflineError
from dispose_rt.download.files import REPOSITORIES, SD15
from dispose_rt.download.files import SVD as SVD_FOLDER
from dispose_rt.download.hub import Hub, _make_counter
from dispose_rt.download.record import DownloadedFile, digest_file, read_record, write_record
from dispose_rt.errors import DownloadError, InputError
from tests.fakes.hub import TOKEN, FakeHub, commit, repos_of, serving, write_placeholders

SVD = REPOSITORIES["svd"].repo
DISPOSE = "lihxxx/DisPose"


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_placeholders(tmp_path_factory.mktemp("source"))


@pytest.fixture
def hub(source: Path) -> Iterator[FakeHub]:
    with serving(repos_of(source)) as fake:
        yield fake


def fetch(
    hub: FakeHub, folder: Path, token: str | None = TOKEN, progress: Callable[..., None] | None = None, **options: Any
) -> Plan:
    """The plan, after it was carried out."""
    client = Hub(token, hub.endpoint)
    plan = make_plan(folder, hub=client, **options)
    download(plan, hub=client, progress=progress)
    return plan


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "download.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_table_is_what_the_exporter_reads() -> None:
    from dispose_rt_export.checkpoints import CONFIG_FILES, FILES

    table = [(one, wanted) for one in REPOSITORIES.values() for wanted in one.wanted]
    published = [*FILES.values(), *CONFIG_FILES.values()]
    assert {file.paths[0] for file in published} == {wanted.choices[0].local for _, wanted in table}
    for repository, wanted in table:
        [file] = [file for file in published if file.paths[0] == wanted.choices[0].local]
        assert set(file.paths) >= {choice.local for choice in wanted.choices}
        assert f"/{repository.repo}" in file.origin
        assert ("gated" in file.origin) == repository.gated


def test_the_exporter_takes_the_folder(toy_checkpoint: Path, tmp_path: Path) -> None:
    from dispose_rt_export.checkpoints import Checkpoint

    with serving(repos_of(toy_checkpoint)) as hub:
        fetch(hub, tmp_path / "weights")
    before, after = Checkpoint(toy_checkpoint), Checkpoint(tmp_path / "weights")
    assert after.configs == before.configs
    assert after.tokenize("photo of a human").tolist() == before.tokenize("photo of a human").tolist()
    assert after.tensors("image_encoder").keys() == before.tensors("image_encoder").keys()
    assert after.provenance == {path: before.provenance[path] for path in contents(tmp_path / "weights")}


def test_everything_arrives_and_is_recorded(hub: FakeHub, source: Path, tmp_path: Path) -> None:
    folder, ticks = tmp_path / "deep" / "weights", []
    plan = fetch(hub, folder, progress=lambda *tick: ticks.append(tick))
    assert contents(folder) == contents(source)
    assert plan.needed_bytes == plan.total_bytes == 3000 * len(plan.files)
    assert [tick[2] for tick in ticks] == sorted(tick[2] for tick in ticks)
    assert ticks[-1][2:] == (plan.total_bytes, plan.total_bytes)
    assert {tick[0] for tick in ticks} == {"download"}
    record = read_record(folder)
    assert record.keys() == contents(source).keys()
    assert record["DisPose.pth"].repo == DISPOSE
    assert record["DisPose.pth"].revision == commit(1)
    assert record["cmp/ckpt_iter_42000.pth.tar"].path.startswith("models/cmp/")
    assert inspect_folder(folder).problems == ()
    licences = {one.repository.name: one.licence for one in plan.repositories}
    assert licences["svd"] == "a-licence-with-terms"
    assert licences["dispose"] == "mit"
    assert not (folder / ".download").exists()


def test_the_token_goes_to_the_hub_alone(hub: FakeHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    for method in ("HEAD", "GET"):
        asked = hub.asked("/resolve/", method)
        assert asked
        assert all(headers["authorization"] == f"Bearer {TOKEN}" for headers in asked)
    stored = hub.asked(f"{DISPOSE}/{commit(1)}/")
    assert stored
    assert all("authorization" not in headers for headers in stored)
    assert TOKEN not in (tmp_path / "download.json").read_text()


def hide_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> ModuleType:
        raise InputError("the exporter is not installed here")

    monkeypatch.setattr("dispose_rt.cli.build.import_exporter", refuse)


def test_what_is_complete_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    hub.requests.clear()
    plan = fetch(hub, tmp_path, token=None)  # nothing is missing: the gate is not even tried
    assert plan.needed_bytes == 0
    assert hub.asked("/resolve/") == hub.asked("/resolve/", "HEAD") == []


def test_the_gate_is_tried_first(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(GateClosedError) as caught:
        fetch(hub, tmp_path, token=None)
    for words in ("no token was given", f"{hub.endpoint}/{SVD}", "HF_TOKEN", "--only mimicmotion,dispose,sd15"):
        assert words in str(caught.value)
    assert all(SVD in path for _, path, _ in hub.requests)
    assert contents(tmp_path / "weights") == {}
    with pytest.raises(GateClosedError, match="has no access"):
        fetch(hub, tmp_path, token="hf_stranger")
    assert not hub.asked("/resolve/")


def test_the_others_need_no_token(hub: FakeHub, tmp_path: Path) -> None:
    plan = fetch(hub, tmp_path, token=None, only=("dispose", "dwpose"))
    assert contents(tmp_path).keys() == {"DisPose.pth", "dwpose/yolox_l.onnx", "dwpose/dw-ll_ucoco_384.onnx"}
    asked = hub.asked("/resolve/", "HEAD")
    assert asked
    assert all("authorization" not in headers for headers in asked)
    assert [one.repository.name for one in plan.repositories] == ["dispose", "dwpose"]
    fetch(hub, tmp_path, token=None, only=("cmp",))
    assert len(read_record(tmp_path)) == 4  # of the first call, too


def test_a_gate_that_was_closed_since(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos[DISPOSE].gated = "manual"
    with pytest.raises(GateClosedError, match=DISPOSE):
        fetch(hub, tmp_path, token=None, only=("dispose",))


def test_an_interruption_leaves_complete_files_and_no_others(hub: FakeHub, source: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, file: str, done_bytes: int, total_bytes: int) -> None:
        if done_bytes >= 4500:  # in the middle of the second file
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(hub, tmp_path, only=("dispose", "dwpose"), progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DisPose.pth", "download.json"]
    assert read_record(tmp_path).keys() == {"DisPose.pth"}
    killed = tmp_path / ".download" / "dwpose" / ".cache" / "yolox_l.onnx.incomplete"
    killed.parent.mkdir(parents=True)
    killed.write_bytes(b"x" * 2000)
    (tmp_path / ".download" / "0123.part").write_bytes(b"x")  # of older releases
    hub.requests.clear()
    ticks: list[tuple[Any, ...]] = []
    plan = fetch(hub, tmp_path, only=("dispose", "dwpose"), progress=lambda *tick: ticks.append(tick))
    assert [file.state for file in plan.files] == ["complete", "missing", "missing"]
    assert not hub.asked("DisPose.pth")
    assert ticks[-1][2:] == (6000, 6000)
    assert contents(tmp_path) == {name: (source / name).read_bytes() for name in contents(tmp_path)}
    assert len(contents(tmp_path)) == 3


def test_transfers_that_recover(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    wrong = []
    for number, faults in enumerate(
        (
            ["cut 700", "cut 0", "cut 1100"],
            ["cut 700", "whole"],
            ["status 503", "status 500"],
            ["cut 1000", "status 502", "status 429"],
            ["silent"],
        )
    ):
        with serving(repos_of(source)) as hub:
            hub.faults["DisPose.pth"] = list(faults)
            fetch(hub, tmp_path / str(number), only=("dispose",))
            arrived = (tmp_path / str(number) / "DisPose.pth").read_bytes()
            if hub.faults["DisPose.pth"] or arrived != (source / "DisPose.pth").read_bytes():
                wrong.append(faults)
    assert wrong == []


def test_transfers_that_do_not_recover(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    wrong = []
    for number, (fault, words) in enumerate(
        (
            ("cut 0!", "broke off.*\n?.*Run the same command again"),
            ("status 503!", "answers 503 for DisPose.pth of lihxxx/DisPose"),
            ("status 403!", "forbids reading DisPose.pth"),
            ("status 404!", "there is no DisPose.pth"),
            ("status 418!", "answers 418"),
            ("silent!", "did not answer in time"),
        )
    ):
        folder = tmp_path / str(number)
        with serving(repos_of(source)) as hub:
            hub.faults["DisPose.pth"] = ["cut 1000", fault]
            try:
                fetch(hub, folder, only=("dwpose", "dispose"))
                wrong.append((fault, "no error"))
            except DownloadError as error:
                if not re.search(words, str(error)) or contents(folder) != {}:
                    wrong.append((fault, str(error)))
            hub.faults.clear()
            fetch(hub, folder, only=("dwpose", "dispose"))
            if inspect_folder(folder, ("dwpose", "dispose")).problems:
                wrong.append((fault, "not repaired"))
    assert wrong == []


def test_other_bytes_than_the_hub_states(hub: FakeHub, tmp_path: Path) -> None:
    for path, name in (("DisPose.pth", "dispose"), ("vae/config.json", "sd15")):
        hub.faults[path] = ["flip"]
        with pytest.raises(DownloadError, match="other contents than the hub states"):
            fetch(hub, tmp_path, only=(name,))
        assert [file for file in contents(tmp_path) if file.endswith(path) or file.startswith(".")] == []
        fetch(hub, tmp_path, only=(name,))


def test_what_the_hub_may_answer(source: Path, tmp_path: Path) -> None:
    answers: list[tuple[Callable[[FakeHub], Any], str]] = [
        (lambda hub: hub.repos.pop(DISPOSE), "there is no lihxxx/DisPose on the hub, or it is private"),
        (lambda hub: hub.repos[DISPOSE].commits.update({commit(2): {"README.md": b"x"}}), "none of DisPose.pth"),
        (lambda hub: hub.repos[DISPOSE].commits.update({commit(2): {}}), "does not tell sizes and hashes"),
        (lambda hub: setattr(hub, "api_status", 503), "out of order: it answers 503"),
        (lambda hub: setattr(hub, "api_status", 429), "too many requests"),
        (lambda hub: setattr(hub, "api_status", 200), "cannot be fetched: JSONDecodeError"),
        (lambda hub: setattr(hub, "api_status", 403), "forbids reading lihxxx/DisPose"),
    ]
    wrong = []
    for change, words in answers:
        with serving(repos_of(source)) as hub:
            change(hub)
            try:
                fetch(hub, tmp_path, token=None, only=("dispose",))
                wrong.append((words, "no error"))
            except DownloadError as error:
                if words not in str(error):
                    wrong.append((words, str(error)))
    assert wrong == []
    assert contents(tmp_path) == {}


def test_tokens_that_are_none(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="refuses the token.*\n.*HF_TOKEN"):
        fetch(hub, tmp_path, token="hf_unknown")
    for token in ("", "two words", "hf_ä"):
        with pytest.raises(DownloadError, match="empty or has characters"):
            Hub(token)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = Hub(endpoint="http://127.0.0.1:9")
    with pytest.raises(OfflineError, match="cannot be reached") as caught:
        make_plan(tmp_path, hub=nobody)
    for one in REPOSITORIES.values():
        assert f"http://127.0.0.1:9/{one.repo}/resolve/main/" in str(caught.value)
    assert "resnet50_vip%2Bmpii_liteflow" in str(caught.value)
    assert "to stable-video-diffusion-img2vid-xt-1-1/vae/diffusion_pytorch_model.fp16.safetensors" in str(caught.value)
    assert f"--output {tmp_path} --check" in str(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError, match="HF_HUB_OFFLINE") as caught:
        make_plan(tmp_path, only=("dispose",), hub=nobody)
    assert str(caught.value).count("/resolve/") == 1


def test_no_room(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights"

    def fill_up(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.file_download, "http_get", fill_up)
        with pytest.raises(DownloadError, match="disk is full"):
            fetch(hub, folder, only=("dwpose",))
    assert contents(folder) == {}
    folder.rmdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5999))
    with pytest.raises(DownloadError, match=r"6\.0 KB of room, and 6\.0 KB are still"):
        fetch(hub, folder, only=("dwpose",))
    assert not folder.exists()
    killed = folder / ".download" / "killed"
    killed.parent.mkdir(parents=True)
    killed.write_bytes(b"x")  # makes room when it is removed
    fetch(hub, folder, only=("dwpose",))


def test_folders_that_cannot_be_filled(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="is no directory"):
        fetch(hub, tmp_path / "file")
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch(hub, tmp_path / "file" / "weights", only=("dispose",))
    (tmp_path / "weights" / "DisPose.pth").mkdir(parents=True)
    with pytest.raises(DownloadError, match="is a directory where a file belongs"):
        fetch(hub, tmp_path / "weights", only=("dispose",))
    (tmp_path / "weights" / ".download").mkdir(exist_ok=True)
    with (
        FileLock(tmp_path / "weights" / ".download" / "lock", thread_local=False),
        pytest.raises(DownloadError, match="another process is downloading"),
    ):
        fetch(hub, tmp_path / "weights", only=("dispose",))


def test_the_best_choice_that_there_is(hub: FakeHub, tmp_path: Path) -> None:
    files = hub.repos[SVD].commits[commit(1)]
    half = files.pop("vae/diffusion_pytorch_model.fp16.safetensors")
    files |= {"vae/diffusion_pytorch_model.safetensors": b"full", "vae/diffusion_pytorch_model.bin": b"pickled"}
    files["image_encoder/pytorch_model.bin"] = files.pop("image_encoder/model.fp16.safetensors")
    fetch(hub, tmp_path, only=("svd",))
    names = {Path(path).name for path in contents(tmp_path)}
    assert {name for name in names if "model" in name} == {"diffusion_pytorch_model.safetensors", "pytorch_model.bin"}
    files["vae/diffusion_pytorch_model.fp16.safetensors"] = half
    assert make_plan(tmp_path, only=("svd",), hub=Hub(TOKEN, hub.endpoint)).needed_bytes == 0  # what is there will do


def test_files_that_lie_elsewhere_or_are_others(hub: FakeHub, source: Path, tmp_path: Path) -> None:
    (tmp_path / "DWPose").mkdir()
    shutil.copy(source / "dwpose" / "yolox_l.onnx", tmp_path / "DWPose")
    (tmp_path / "DisPose.pth").write_bytes(b"a Git LFS pointer")
    plan = fetch(hub, tmp_path, only=("dispose", "dwpose"))
    assert [file.state for file in plan.files] == ["different", "complete", "missing"]
    assert (tmp_path / "DisPose.pth").read_bytes() == (source / "DisPose.pth").read_bytes()
    assert read_record(tmp_path).keys() == {"DisPose.pth", "DWPose/yolox_l.onnx", "dwpose/dw-ll_ucoco_384.onnx"}


def test_revisions(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos[DISPOSE].commits[commit(2)] = {"DisPose.pth": b"newer"}
    fetch(hub, tmp_path, only=("dispose",), revisions={"dispose": commit(1)})
    assert read_record(tmp_path)["DisPose.pth"].revision == commit(1)
    plan = fetch(hub, tmp_path, only=("dispose",))
    assert (plan.files[0].state, (tmp_path / "DisPose.pth").read_bytes()) == ("different", b"newer")
    assert read_record(tmp_path)["DisPose.pth"].revision == commit(2)
    with pytest.raises(DownloadError, match="has no revision 'v9'"):
        fetch(hub, tmp_path, only=("dispose",), revisions={"dispose": "v9"})
    with pytest.raises(InputError, match="'cmp'"):
        fetch(hub, tmp_path, only=("dispose",), revisions={"cmp": "v9"})
    with pytest.raises(InputError, match="no weights called 'dwpos'"):
        fetch(hub, tmp_path, only=("dwpos",))


def test_a_folder_that_changed_since(hub: FakeHub, tmp_path: Path) -> None:
    def replace_by_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    damages: list[tuple[Callable[[Path], Any], str]] = [
        (Path.unlink, "DisPose.pth is missing"),
        (lambda path: path.write_bytes(b"short"), "DisPose.pth has 5 bytes, expected 3000"),
        (lambda path: path.write_bytes(b"x" * 3000), "DisPose.pth has other contents"),
        (replace_by_folder, "DisPose.pth is no file"),
    ]
    fetch(hub, tmp_path / "weights")
    wrong = []
    for number, (damage, problem) in enumerate(damages):
        copy = shutil.copytree(tmp_path / "weights", tmp_path / str(number))
        damage(copy / "DisPose.pth")
        found = inspect_folder(copy)
        if [problem in line for line in found.problems] != [True] or len(found.intact) != len(read_record(copy)) - 1:
            wrong.append((problem, found))
        if inspect_folder(copy, ("cmp", "svd")).problems:
            wrong.append((problem, "others"))
    assert wrong == []


def test_the_check_names_every_file_that_does_not_fit(
    toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
        code = main(["download", "--output", str(folder), "--check", "--json", *options])
        return code, json.loads(capsys.readouterr().out)

    folder = shutil.copytree(toy_checkpoint, tmp_path / "weights", copy_function=os.link)
    code, found = run(folder)
    assert (code, found["intact"], found["problems"], len(found["files"])) == (0, [], [], 20)
    assert {(one["whole"], one["fits"]) for one in found["files"]} == {(None, True)}
    assert "no hash" in found["notes"][0]
    networks = {network for one in found["files"] for network in one["networks"]}
    assert networks == set(NETWORKS)

    def replace(path: str, content: bytes | None) -> None:
        (folder / path).unlink()  # the original is linked
        if content is not None:
            (folder / path).write_bytes(content)

    cmp_file = folder / "cmp" / "ckpt_iter_42000.pth.tar"
    research = folder / "cmp/experiments/semiauto_annot/resnet50_vip+mpii_liteflow/checkpoints" / cmp_file.name
    research.parent.mkdir(parents=True)
    cmp_file.rename(research)
    record = {}
    for path in ("MimicMotion_1-1.pth", "dwpose/yolox_l.onnx"):
        size, digest = (folder / path).stat().st_size, digest_file(folder / path).sha256
        record[path] = DownloadedFile("a/b", path, commit(1), size, digest)
    write_record(folder, record)
    replace("DisPose.pth", (folder / "MimicMotion_1-1.pth").read_bytes())
    replace("dwpose/yolox_l.onnx", b"version https://git-lfs.github.com/spec/v1")
    for path in (f"{SD15}/tokenizer/merges.txt", f"{SD15}/vae/config.json", "dwpose/dw-ll_ucoco_384.onnx"):
        replace(path, None)
    config = json.loads((toy_checkpoint / f"{SVD_FOLDER}/vae/config.json").read_text())
    replace(f"{SVD_FOLDER}/vae/config.json", json.dumps(config | {"block_out_channels": [32, 64, 96, 64]}).encode())
    headers = import_exporter().inspect_folder(folder)
    exporter = SimpleNamespace(inspect_folder=lambda folder: headers)
    monkeypatch.setattr("dispose_rt.cli.build.import_exporter", lambda: exporter)  # once is enough
    code, found = run(folder)
    files = {one["path"]: one for one in found["files"]}
    assert code == 1
    assert found["intact"] == ["MimicMotion_1-1.pth"]
    assert found["problems"] == [line for one in found["files"] for line in one["problems"]]
    states = {path: (one["whole"], one["fits"]) for path, one in files.items() if one["problems"]}
    vae = f"{SVD_FOLDER}/vae/diffusion_pytorch_model.fp16.safetensors"
    assert states == {
        "DisPose.pth": (None, False),
        "dwpose/yolox_l.onnx": (False, False),
        "dwpose/dw-ll_ucoco_384.onnx": (None, None),
        f"{SD15}/tokenizer/merges.txt": (None, None),
        f"{SD15}/vae/config.json": (None, None),
        vae: (None, False),
    }
    assert any(line.startswith("DisPose.pth: missing: ") for line in files["DisPose.pth"]["problems"])
    assert any("wrong shape: " in line for line in files[vae]["problems"])
    assert files["dwpose/yolox_l.onnx"]["problems"] == [
        f"dwpose/yolox_l.onnx has 42 bytes, expected {record['dwpose/yolox_l.onnx'].size_bytes}",
        "dwpose/yolox_l.onnx: it is a Git LFS pointer, not the file itself: `git lfs pull` was never run",
    ]
    assert files[f"{SD15}/vae/config.json"]["problems"] == [
        f"{SD15}/vae/config.json was not downloaded (--only sd15 fetches it)"
    ]
    assert files[research.relative_to(folder).as_posix()]["fits"]
    code, found = run(folder, "--only", "mimicmotion,cmp")
    assert (code, len(found["files"])) == (0, 2)
    assert main(["download", "--output", str(folder), "--check"]) == 1
    table, errors = capsys.readouterr()
    assert re.search(r"^DisPose.pth +[\d.]+ MB  no record  WRONG +motion_encoder, point", table, re.MULTILINE)
    assert re.search(r"^dwpose/dw-ll_ucoco_384.onnx +missing  - +- +pose_estimator$", table, re.MULTILINE)
    assert "14 of 20 files are as they have to be:" in errors
    assert "  - DisPose.pth: missing: " in errors


def test_records_that_cannot_be_used(hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DownloadError, match="has no download.json"):
        inspect_folder(tmp_path)
    fetch(hub, tmp_path, only=("dispose",))
    assert any("MimicMotion_1-1.pth was not downloaded" in line for line in inspect_folder(tmp_path).problems)
    path = tmp_path / "download.json"
    intact = path.read_text()
    for text in (
        intact.replace('"size_bytes": 3000', '"size_bytes": 3001'),
        "{",
        intact.replace('"format": 1', '"format": 2'),
    ):
        path.write_text(text)
        with pytest.raises(DownloadError, match="cannot be used"):
            inspect_folder(tmp_path)
    fetch(hub, tmp_path, only=("dispose",))
    assert "is written anew" in caplog.text
    assert path.read_text() == intact


def test_a_record_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    for path in ("../DisPose.pth", "/etc/passwd", "a/../../b", "C:\\x"):
        write_record(tmp_path, {path: DownloadedFile("a/b", "c", commit(1), 1, "0" * 64)})
        with pytest.raises(DownloadError, match=re.escape(f"{path!r} leads out of the folder")):
            inspect_folder(tmp_path)


def test_bytes_are_counted_once_whichever_way_they_come() -> None:
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    counts: list[int] = []
    with XetDownloadProgressReporter(
        reconstruction_desc="a", total=300, log_level=30, tqdm_class=_make_counter(counts.append)
    ) as reporter:
        for done, sent in ((0, 40), (100, 80), (300, 170)):
            reporter.update_progress(
                SimpleNamespace(
                    total_bytes_completed=done,
                    total_transfer_bytes_completed=sent,
                    total_bytes_completion_rate=1.0,
                    total_transfer_bytes_completion_rate=None,
                    total_bytes=300,
                )
            )
    assert counts == [100, 300]


def test_the_bar_shows_bytes_and_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = []
    for quiet in (False, True):
        monkeypatch.setattr(sys, "stderr", Terminal())
        with _Bar(quiet) as bar:
            drawn = []
            for stage, file, done, total in (
                ("hash", "a/first.bin", 10, 10),
                ("download", "a/first.bin", 50, 200),
                ("download", "a/second.bin", 150, 200),
            ):
                bar(stage, file, done, total)
                drawn.append(bar._bar)
            assert quiet or (drawn[0] is not drawn[1] and drawn[1] is drawn[2])  # one bar per stage: its pace goes on
            bar._bar and bar._bar.refresh()
        shown.append(sys.stderr.getvalue())
    assert "hash" in shown[0]
    assert re.search(r"download:\s+75%.*150/200.*second\.bin", shown[0])
    assert shown[0].rstrip(" ").endswith("\r")  # it was taken away
    assert shown[1] == ""


def test_without_the_hub_s_package(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(hub, tmp_path)
    real = importlib.util.find_spec
    missing = lambda name, *more: None if name == "huggingface_hub" else real(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert main(["download", "--output", str(tmp_path)]) == 1
    assert "pip install 'dispose-rt[download]'" in capsys.readouterr().err
    hide_exporter(monkeypatch)
    assert main(["download", "--output", str(tmp_path), "--check"]) == 0


def test_the_command(
    hub: FakeHub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "weights"

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["download", "--output", str(folder), *arguments])
        return code, *capsys.readouterr()

    monkeypatch.setattr("dispose_rt.cli.download._open_hub", lambda token: Hub(token or TOKEN, hub.endpoint))
    code, plan, errors = run("--dry-run")
    assert (code, errors) == (0, "")
    for words in (SVD, "a-licence-with-terms, gated", "commercial use", "60.0 KB to fetch of 60.0 KB", "of room"):
        assert words in plan
    assert not folder.exists()
    # a process of its own finds the hub and the token in its environment
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", "from dispose_rt.cli import main; raise SystemExit(main())", "download"]
    done = subprocess.run(
        [*command, "--output", str(folder), "--json"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert TOKEN not in done.stdout
    document = json.loads(done.stdout)
    assert contents(folder) == contents(source)
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []  # no second copy
    assert document["fetched_bytes"] == 60000
    assert document["files"].keys() == contents(source).keys()
    code, _, errors = run("--check")
    assert (code, "  - DisPose.pth: " in errors) == (1, True)  # 3000 bytes of nothing
    hide_exporter(monkeypatch)
    code, table, errors = run("--check")
    assert (code, errors) == (0, "")
    assert re.search(r"^MimicMotion_1-1.pth +3.0 KB  yes +not checked$", table, re.MULTILINE)
    assert table.endswith(
        f"shapes are not checked: the exporter is not installed here\n{folder}: 20 files are what was downloaded\n"
    )
    (folder / "DisPose.pth").unlink()
    code, _, errors = run("--check")
    assert (code, "  - DisPose.pth is missing\n" in errors) == (1, True)
    code, output, _ = run("--check", "--json")
    assert (code, json.loads(output)["problems"]) == (1, ["DisPose.pth is missing"])
    code, output, _ = run("--only", "dispose", "--revision", commit(1))
    assert (code, "1 file is complete; still to fetch: mimicmotion" in output) == (0, True)
    for arguments in (("--only", "dwpos"), ("--check", "--dry-run")):
        assert run(*arguments)[0] == 2
    code, _, errors = run("--revision", "v1")
    assert (code, "NAME=REV" in errors) == (1, True)


def test_ctrl_c_says_that_nothing_is_lost(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dispose_rt.cli.download._open_hub", lambda token: Hub(token, hub.endpoint))
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.file_download, "http_get", interrupt)
        assert main(["download", "--output", str(tmp_path), "--only", "cmp"]) == 130
    assert "the same command fetches the rest" in capsys.readouterr().err
    assert contents(tmp_path) == {}
    assert main(["download", "--output", str(tmp_path), "--only", "cmp", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
