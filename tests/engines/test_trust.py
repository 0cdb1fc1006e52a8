"""Native code of an engine directory runs for those who built it, or who were asked."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dispose_rt import Animator, cli
from dispose_rt.doctor.diagnosis import examine
from dispose_rt.engines import trust
from dispose_rt.engines.integrity import find_damage
from dispose_rt.engines.manifest import Manifest, read_manifest, write_manifest
from dispose_rt.engines.open import Engines
from dispose_rt.errors import InputError, ManifestError
from tests.every import every_item

from .small_directory import write_directory
from .test_preflight import write_compiled

Captured = pytest.CaptureFixture[str]
User = Callable[[str], None]


@pytest.fixture(autouse=True)
def become(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    """`become(name)`: go on as a user with a home and keys of their own; "alice" in the beginning."""
    monkeypatch.delenv("DISPOSE_RT_TRUST", raising=False)

    def change(name: str) -> None:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "homes" / name))

    change("alice")
    return change


def write_signed(folder: Path, **changes: Any) -> Manifest:
    manifest = write_compiled(folder, "aotinductor", targets=("cpu",), **changes)
    trust.sign_directory(manifest)
    return manifest


def assert_refused(folder: Path, words: str) -> None:
    """By whatever loads engines, before their files are opened."""
    with pytest.raises(ManifestError, match=rf"(?s)native code.*{words}.*dispose-rt trust"):
        Animator(folder, "cpu")
    with pytest.raises(ManifestError, match=words):
        Engines(read_manifest(folder), "cpu")("point_encoder")
    diagnosis = examine(folder, "cpu", load_only=True)
    assert words in diagnosis.directories[0].failure
    assert not diagnosis.directories[0].networks


def test_what_one_user_built_runs_for_that_user_alone(tmp_path: Path, become: User) -> None:
    manifest = write_signed(tmp_path / "e")
    assert trust.find_distrust(manifest) is None
    key = trust.own_key()
    become("bob")
    assert_refused(tmp_path / "e", f"signed by {key}, which you do not trust")
    trust.require_trust(replace(manifest, trusted=True))  # Animator(..., trust=True)
    assert trust.own_key() is None  # looking makes no key


def test_engines_without_code_need_no_trust(tmp_path: Path) -> None:
    assert trust.find_distrust(write_directory(tmp_path / "e")) is None


def test_a_signature_covers_every_file_and_counts_for_no_other_directory(tmp_path: Path) -> None:
    manifest = write_signed(tmp_path / "e")
    signature = (tmp_path / "e" / trust.SIGNATURE_FILE_NAME).read_bytes()
    path = tmp_path / "e" / "unet.pt2"
    path.write_bytes(path.read_bytes()[::-1])
    assert [damage.network for damage in find_damage(manifest)] == ["unet"]
    forged = write_compiled(tmp_path / "forged", "aotinductor", targets=("cpu",), versions={"torch": "2.13.0"})
    body = json.loads(signature)
    with every_item() as every:
        for name, content in {
            "another directory's": signature,
            "none": b"",
            "of other things": json.dumps([1]).encode(),
            "with a key alone": json.dumps({"key": body["key"]}).encode(),
            "with a key of the wrong length": json.dumps({**body, "key": body["key"][:-1]}).encode(),
            "of nonsense": json.dumps({**body, "signature": "?"}).encode(),
            "of zeros": json.dumps({**body, "signature": "A" * 86 + "=="}).encode(),
        }.items():
            with every(name):
                (tmp_path / "forged" / trust.SIGNATURE_FILE_NAME).write_bytes(content)
                assert trust.signer_of(forged) is None
                assert_refused(tmp_path / "forged", "it is not signed")


def test_a_user_trusts_a_directory_or_a_key(tmp_path: Path, become: User, capsys: Captured) -> None:
    write_signed(tmp_path / "one")
    write_signed(tmp_path / "two", versions={"torch": "2.13.0"})
    key = trust.own_key()
    become("bob")

    def trusted() -> list[bool]:
        return [trust.find_distrust(read_manifest(tmp_path / name)) is None for name in ("one", "two")]

    def run(*words: object) -> str:
        assert cli.main(["trust", *map(str, words)]) == 0
        return capsys.readouterr().out

    assert trusted() == [False, False]
    assert f"trusted as it is now; signed by {key}" in run(tmp_path / "one")
    assert trusted() == [True, False]
    shutil.move(tmp_path / "one", tmp_path / "moved")
    assert trust.find_distrust(read_manifest(tmp_path / "moved")) is None  # wherever it lies
    shutil.move(tmp_path / "moved", tmp_path / "one")
    run("--forget", tmp_path / "one")
    assert trusted() == [False, False]
    run(key)
    assert trusted() == [True, True]
    assert json.loads(run("--json")) == {"own_key": None, "keys": [key], "directories": {}}
    assert f"trusted key: {key}" in run()
    run("--forget", key)
    assert trusted() == [False, False]
    assert "hold no code" in run(write_directory(tmp_path / "plain").folder)


def test_a_directory_that_was_trusted_and_changed_is_not_trusted(tmp_path: Path) -> None:
    manifest = write_compiled(tmp_path / "e", "aotinductor", targets=("cpu",))
    trust.trust_directory(manifest)
    assert trust.find_distrust(manifest) is None
    write_manifest(replace(manifest, versions={"torch": "2.13.1"}))
    assert_refused(tmp_path / "e", "it is not signed")


def test_containers_trust_by_the_environment(tmp_path: Path, become: User, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_signed(tmp_path / "e")
    key = str(trust.own_key())
    become("container")
    for value, expected in (("all", True), (f"{key}", True), (f" {key} , {key}", True), ("", False)):
        monkeypatch.setenv("DISPOSE_RT_TRUST", value)
        assert (trust.find_distrust(manifest) is None) is expected, value
    for value in ("1", f"{key}x", f"{key},everything"):
        monkeypatch.setenv("DISPOSE_RT_TRUST", value)
        with pytest.raises(InputError, match="DISPOSE_RT_TRUST holds .*separated by commas"):
            trust.find_distrust(manifest)
    assert not (tmp_path / "homes" / "container").exists()


@pytest.mark.skipif(os.name != "posix", reason="permissions of this kind are POSIX")
def test_damaged_or_open_keys_are_named(tmp_path: Path) -> None:
    manifest = write_signed(tmp_path / "e")
    path = trust.config_folder() / "signing-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    with pytest.raises(InputError, match="open to others; make it yours alone: chmod 600"):
        trust.sign_directory(manifest)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(InputError, match="is damaged"):
        trust.find_distrust(manifest)
    path.unlink()
    (path.parent / "trusted.json").write_text('{"keys": ["ssh-rsa"], "directories": {}}')
    with pytest.raises(InputError, match="not a list of keys"):
        trust.find_distrust(manifest)


def test_what_is_remembered_of_code_cannot_be_forged(tmp_path: Path, become: User) -> None:
    """Someone who may write to the directory, and reads this program, writes the memory of an intact directory."""
    manifest = write_signed(tmp_path / "e")
    for path in (tmp_path / "e").iterdir():
        os.utime(path, ns=(1, 1))
    path = tmp_path / "e" / "unet.pt2"
    path.write_bytes(path.read_bytes()[::-1])
    become("mallory")
    trust.sign_directory(write_compiled(tmp_path / "own", "aotinductor"))  # has a key too
    from dispose_rt.engines.integrity import _Snapshot

    forged = _Snapshot.take(manifest)
    assert forged is not None
    (tmp_path / "e" / ".checked.json").write_text(json.dumps(forged.digest))
    assert find_damage(manifest) == []  # mallory's own belief
    become("alice")
    assert [damage.network for damage in find_damage(manifest)] == ["unet"]
    become("nobody")
    assert _Snapshot.take(manifest) is None
