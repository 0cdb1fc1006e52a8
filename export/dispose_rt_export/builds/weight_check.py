"""Checks every file of a checkpoint by its header, before any is hashed or loaded, so that one message names it all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dispose_rt.contract import NETWORKS
from dispose_rt.engines.onnx_file import find_foreign_parts
from dispose_rt.errors import CheckpointError

from ..checkpoints import (
    COMPONENTS,
    CONFIG_FILES,
    FILES,
    REMEDY,
    Checkpoint,
    Config,
    PublishedFile,
    Tensors,
    Weights,
    only_compare,
    select_component,
    shorten,
)
from ..networks.dift import PROMPT, embed_prompt
from ..weight_files import find_impostor, first_line
from .plan import RECIPES

_ROOTS = {"cmp": "module.", "sd15_text_encoder": "text_model."}
"""What all names of a published file begin with."""
LONGEST_LINE = 300
_intact: set[object] = set()
"""States of checkpoints that were found intact in this process: a command may build several directories."""


def check_weights(checkpoint: Checkpoint, *further: Callable[[Weights], object]) -> None:
    """Compare names, shapes and kinds of all published tensors with the networks', and read all configurations.

    Takes seconds: networks are built without values. Every problem of every file is found at once.

    Args:
        checkpoint: the folder.
        further: readers of configurations.

    Raises:
        CheckpointError: files are damaged, or are not those that the networks need.
    """
    state = checkpoint.state
    if state in _intact:
        return
    if found := _find_problems(checkpoint, further):
        count = "one file" if len(found) == 1 else f"{len(found)} files"
        raise CheckpointError(
            f"{count} in {checkpoint.folder} cannot be used:",
            ["\n      ".join([f"{path}:", *_cut(lines)]) for path, lines in found.items()],
            f"{REMEDY} `dispose-rt download` fetches them.",
        )
    _intact.add(state)


@dataclass(frozen=True)
class HeaderCheck:
    """What the header of one published file tells.

    Attributes:
        published: path of the file as published, relative to the folder.
        path: where it was found, or where it belongs.
        networks: networks that are built from it; empty for configurations, which all of them need.
        problems: why no engine can be built from it, phrased to follow its name and a colon.
    """

    published: str
    path: Path
    networks: tuple[str, ...]
    problems: tuple[str, ...]


def inspect_weights(folder: Path, *further: Callable[[Weights], object]) -> tuple[HeaderCheck, ...]:
    """Check every published file in a folder, which may lack some, as `check_weights` does.

    Args:
        folder: an existing folder.
        further: readers of configurations.
    """
    checkpoint = Checkpoint(folder, complete=False)
    found = _find_problems(checkpoint, further)
    readers: dict[str, list[str]] = {}
    for network, spec in NETWORKS.items():
        for name in (network,) if spec.published else RECIPES[network].files:
            readers.setdefault(name, []).append(network)
    paths = [(file, checkpoint.path(name), readers[name]) for name, file in FILES.items()]
    paths += [(file, checkpoint.config_path(name), []) for name, file in CONFIG_FILES.items()]
    return tuple(
        HeaderCheck(file.paths[0], path, tuple(networks), tuple(_cut(found.get(path, []))))
        for file, path, networks in paths
    )


def _find_problems(
    checkpoint: Checkpoint, further: Sequence[Callable[[Weights], object]]
) -> Mapping[Path, Sequence[str]]:
    headers = _Headers(checkpoint)
    for check in (*further, *(recipe.build for recipe in RECIPES.values()), _embed_prompt):
        headers.run(check)
    for name, spec in NETWORKS.items():
        if spec.published:
            headers.check_onnx(checkpoint.path(name))
    return headers.problems


def _cut(lines: Sequence[str]) -> list[str]:
    """As many lines as can be read, at a length that can be read: they may quote values of any length."""
    return [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..." for line in shorten(lines)]


def _embed_prompt(weights: Weights) -> None:
    """What `build_dift` does last, and leaves out where another of its files is damaged."""
    embed_prompt(weights, PROMPT)


class _Headers(Weights):
    """The headers of a checkpoint's files: tensors on the meta device.

    Attributes:
        problems: everything that is wrong, by path.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.problems: dict[Path, list[str]] = {}
        self._checkpoint = checkpoint
        self._last = checkpoint.folder
        self._component = ""
        self._files: dict[str, Tensors] = {}
        self._configs: dict[str, Config] = {}
        for name, file in FILES.items():
            self._note_missing(checkpoint.path(name), file)
        for name, file in CONFIG_FILES.items():
            self._note_missing(checkpoint.config_path(name), file)
        for name in dict.fromkeys(part.file for part in COMPONENTS.values()):
            with self._noting(checkpoint.path(name)):
                self._files[name] = checkpoint.headers(name)
        for name in CONFIG_FILES:
            with self._noting(checkpoint.config_path(name)):
                self._configs[name] = checkpoint.read_config(name)

    def run(self, check: Callable[[Weights], object]) -> None:
        """Build a network, or read configurations; whatever fails is a problem of the file that was used last."""
        broken = set(self.problems)
        try:
            with only_compare(self._compare):
                check(self)
        except Exception as error:  # configurations make the libraries' constructors raise anything
            if self._last in broken:
                return
            self._note(self._last, _describe(error))

    def check_onnx(self, path: Path) -> None:
        """Check a network that is published as an ONNX file."""
        with self._noting(path):
            found = find_impostor(path)
            lines = [f"it is {found}"] if found else [f"it {line}" for line in find_foreign_parts(path, ())]
            self._note(path, lines)

    @property
    def configs(self) -> Mapping[str, Config]:
        return _Noticed(self._configs, self._use_config)

    def tensors(self, component: str) -> Tensors:
        file = COMPONENTS[component].file
        self._component, self._last = component, self._checkpoint.path(file)
        return select_component(component, self._files.get(file, {}))

    def source(self, component: str) -> str:
        return self._checkpoint.source(component)

    def tokenize(self, prompt: str) -> Tensor:
        paths = [self._checkpoint.path(name) for name in ("sd15_vocabulary", "sd15_merges")]
        self._last = next((path for path in paths if path in self.problems), paths[0])
        return self._checkpoint.tokenize(prompt).to("meta")

    def fingerprint(self, file: str) -> Mapping[str, Any]:
        raise NotImplementedError("headers are not hashed")

    @property
    def provenance(self) -> Mapping[str, Mapping[str, Any]]:
        raise NotImplementedError("headers are not hashed")

    def published_file(self, name: str, scratch: Path) -> Path:
        return self._checkpoint.path(name)

    def _use_config(self, name: str) -> None:
        self._last = self._checkpoint.config_path(name)

    def _compare(self, lines: list[str]) -> None:
        """Note what `load_strict` found, in fewer words where all names have a prefix too many."""
        part = COMPONENTS[self._component]
        if part.file not in self._files:  # it could not be read, and was noted for that
            return
        if lines and (prefix := _common_prefix(part.file, self._files[part.file])):
            lines = [
                f"all {len(self._files[part.file]):,} names of tensors begin with '{prefix}', and no published name "
                "does: the network was saved from inside another module. Save it without that prefix"
            ]
        else:
            lines = [line.replace(": ", f": {part.prefix}", 1) for line in lines]
        self._note(self._checkpoint.path(part.file), lines)

    def _note(self, path: Path, lines: list[str]) -> None:
        if lines:
            known = self.problems.setdefault(path, [])
            known += [line for line in lines if line not in known]

    def _note_missing(self, path: Path, file: PublishedFile) -> None:
        if not path.is_file():
            self._note(path, [f"it is missing; download it from {file.origin}"])

    @contextmanager
    def _noting(self, path: Path) -> Iterator[None]:
        """Note what goes wrong with a file in the block, unless it is known to be missing."""
        known = path in self.problems
        try:
            yield
        except (CheckpointError, OSError, ValueError) as error:
            if not known:
                self._note(path, [str(error).partition("\n")[0].removeprefix(f"{path} ")])


def _describe(error: Exception) -> list[str]:
    if isinstance(error, CheckpointError):
        return [str(error).partition("\n")[0], *error.problems]
    if isinstance(error, KeyError):
        return [f"{error} is missing"]
    return [f"its values cannot be used: {first_line(error)}"]


class _Noticed(Mapping[str, Config]):
    """A mapping that reports which entry is read."""

    def __init__(self, entries: Mapping[str, Config], notice: Callable[[str], None]) -> None:
        self._entries = entries
        self._notice = notice

    def __getitem__(self, name: str) -> Config:
        self._notice(name)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _common_prefix(file: str, tensors: Tensors) -> str:
    """The first part of all names of a file, such as "module.", where the published ones share none."""
    names = [name.removeprefix(_ROOTS.get(file, "")) for name in tensors]
    first = {name.partition(".")[0] for name in names}
    return f"{first.pop()}." if len(first) == 1 and len(names) > 1 else ""
