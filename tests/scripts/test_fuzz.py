"""scripts/fuzz.py: it reports every kind of failure, the same seed gives the same cases, and a short run finds none."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).resolve().parents[2] / "scripts" / "fuzz.py"
PLANTED = ("untyped", "mute", "obeyed", "warning", "traceback", "crash", "hang", "memory")


def fuzz(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(FUZZ), *words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=FUZZ.parents[1],
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_every_planted_fault_is_reported_and_kept(tmp_path: Path) -> None:
    """The first two cases are an accepted and a refused input; a crash and a hang end no other case."""
    code, text = fuzz("--only", "planted", "--cases", "10", "--seed", "3", "--keep", str(tmp_path))
    assert code == 1
    assert re.search(r"^planted +10 +1 +1 +8 ", text, re.MULTILINE), text
    for number, fault in enumerate(PLANTED, 2):
        assert f"\nplanted, case {number}: {fault}, planted\n    {fault}: " in text, text
        assert f"--seed 3 --only planted --case {number}\n" in text
        assert (tmp_path / f"planted-3-{number}" / "input.txt").read_text() == fault
        assert f"{fault}: " in (tmp_path / f"planted-3-{number}" / "failure.txt").read_text()
    assert len(list(tmp_path.iterdir())) == 8
    for seed in ("3", "4"):
        assert fuzz("--only", "planted", "--case", "2", "--seed", seed, "--keep", str(tmp_path / seed))[0] == 1
    first, again, other = ((tmp_path / name / "noise.bin").read_bytes() for name in ("planted-3-2", "3", "4"))
    assert first == again != other


def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    code, text = fuzz("--only", "media,manifests", "--cases", "60", "--seed", "5", "--keep", str(tmp_path))
    assert code == 0, text
    for area in ("media", "manifests"):
        assert re.search(rf"^{area} +60 +[1-9]\d* +[1-9]\d* +0 ", text, re.MULTILINE), text
