"""A record against an earlier one of the same clip and settings, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..system.json_reader import read_json

_TOTALS = {"total_s": "total", "s_per_frame": "per frame", "first_frame_s": "first frame after"}


def read_record(path: Path) -> dict[str, Any]:
    """Read what an earlier measurement wrote.

    Raises:
        InputError: it cannot be read, or is no such record.
    """
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be compared with: {error}; pass what --json FILE wrote") from error
    try:
        _check_record(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is no record of dispose-rt bench ({type(error).__name__}: {error}); pass what --json FILE wrote"
        ) from error
    return dict(record)


def _check_record(record: Any) -> None:
    """Look at everything that is read from a record here, so that no mistake in it shows up after the runs."""
    for part in (record["settings"], record["engines"]["sizes"], record["device"], record["versions"]):
        part.items()
    for name in ("command", "date"):
        if not isinstance(record[name], str):
            raise TypeError(f"{name} is no text")
    for name in ("backend", "precision"):
        record["engines"][name]
    for name in ("clip", "frames", "tiles", "overlap", "steps", "guidance_scale"):
        record["settings"][name]
    summary = record["summary"]
    for numbers in (*(summary[name] for name in _TOTALS), *summary["stages_s"].values()):
        if not (numbers["median"] > 0 and numbers["spread"] >= 0):
            raise ValueError("a time is not above 0")
    if not record["device"]["name"]:
        raise ValueError("its device has no name")


def refuse_others(
    path: Path, earlier: Mapping[str, Any], engines: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Refuse a record of another clip, size or setting: a ratio would compare different work.

    Args:
        path: of the earlier record, for the message.
        earlier: the record.
        engines: "engines" of the new record.
        settings: "settings" of the new record, as far as they are known.

    Raises:
        InputError: names every difference.
    """
    then, now = earlier["settings"], dict(settings)
    names = f"clip: {then['clip']} there, {now['clip']} here"
    differences = []
    if "clip_sha256" not in then:
        differences += [names] if then["clip"] != now["clip"] else []
    elif then["clip_sha256"] != now["clip_sha256"]:  # the same pictures may have other names
        differences.append(names if then["clip"] != now["clip"] else f"clip: {now['clip']}, but of other content")
    del now["clip"], now["clip_sha256"]
    differences += [*_differences(then, now), *_differences(earlier["engines"]["sizes"], engines["sizes"])]
    if differences:
        listed = "\n".join(f"  - {difference}" for difference in differences)
        raise InputError(
            f"{path} was measured with another clip or other settings, so it cannot be compared with:\n{listed}\n"
            f"Measure the same: {earlier['command']}"
        )


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name, value in now.items():
        value = list(value) if isinstance(value, tuple) else value  # noqa: PLW2901 - as JSON has it
        if name in then and then[name] != value:
            yield f"{name}: {then[name]} there, {value} here"


def compare_records(path: Path, earlier: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into the JSON file: how many times as long the earlier record took, by stage and on the whole."""
    then, now = _times(earlier), _times(record)
    ratios = {name: then[name]["median"] / now[name]["median"] for name in now if name in then}
    return {"with": str(path), "date": earlier["date"], "ratios": ratios}


def comparison_lines(path: Path, earlier: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """The same as text: what else differs, then a line per stage."""
    yield f"against {path}, measured {earlier['date']}; a ratio above 1 says that it is faster now"
    yield from (f"  {difference}" for difference in _other_differences(earlier, record))
    yield f"  {'stage':<18}{'then':>12}{'now':>13}{'ratio':>9}"
    then, now = _times(earlier), _times(record)
    for name, numbers in now.items():
        if name not in then:
            yield f"  {name:<18}{'':>12}{numbers['median']:11.4f} s"
            continue
        before = then[name]
        noise = max(before["spread"], numbers["spread"])
        remark = "   within the spread" if abs(before["median"] - numbers["median"]) <= noise else ""
        ratio = before["median"] / numbers["median"]
        yield f"  {name:<18}{before['median']:10.4f} s{numbers['median']:11.4f} s{ratio:9.2f}{remark}"
    gone = [name for name in then if name not in now]
    if gone:
        yield f"  only there: {', '.join(gone)}"


def _times(record: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    summary = record["summary"]
    return {**summary["stages_s"], **{label: summary[name] for name, label in _TOTALS.items()}}


def _other_differences(earlier: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """What may explain a ratio."""
    pairs = {
        "device": (earlier["device"]["name"], record["device"]["name"]),
        **{name: (earlier["engines"][name], record["engines"][name]) for name in ("backend", "precision")},
    }
    names = sorted({*earlier["versions"], *record["versions"]})
    pairs |= {name: (earlier["versions"].get(name, "none"), record["versions"].get(name, "none")) for name in names}
    for name, (then, now) in pairs.items():
        if then != now:
            yield f"{name}: {then} then, {now} now"
