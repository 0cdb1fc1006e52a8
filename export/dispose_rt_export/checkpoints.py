"""Published weight files: found, read safely and lazily, and loaded into modules that take exactly their tensors.

The layout is that of the README of DisPose: one folder with everything in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dispose_rt.engines.manifest import Stamp, sha256_of, stamp_of
from dispose_rt.errors import CheckpointError
from dispose_rt.system.json_reader import read_json

from .weight_files import Tensors as Tensors  # noqa: PLC0414 - the builders of networks take it from here
from .weight_files import download_again, find_impostor, first_line, read_headers, read_tensors

Config: TypeAlias = Mapping[str, Any]

SVD = "stable-video-diffusion-img2vid-xt-1-1"
SD15 = "stable-diffusion-v1-5"
PROMPT_TOKENS = 77

LISTED_PROBLEMS = 10
"""Most lines of a message about one file."""
REMEDY = "Use the file as its authors published it; other models or versions and converted files do not fit."

_HUB = "https://huggingface.co"
_SVD_HUB = f"{_HUB}/stabilityai/{SVD} (gated: log in and accept its licence there first)"
_SD15_HUB = f"{_HUB}/{SD15}/{SD15}"
_DWPOSE_HUB = f"{_HUB}/yzd-v/DWPose"
_CMP_FOLDER = "cmp/experiments/semiauto_annot/resnet50_vip+mpii_liteflow/checkpoints"
_CMP_FILE = "ckpt_iter_42000.pth.tar"


@dataclass(frozen=True)
class PublishedFile:
    """One file of the published layout.

    Attributes:
        paths: where it may lie, relative to the checkpoint folder, best choice first.
        origin: page to download it from.
    """

    paths: tuple[str, ...]
    origin: str


def _weights(folder: str, stem: str, origin: str, pickled: str = "") -> PublishedFile:
    """Weights of a diffusers or transformers folder; half precision comes first, since the reference reads it."""
    names = (f"{stem}.fp16.safetensors", f"{stem}.safetensors")
    pickles = (f"{pickled or stem}.fp16.bin", f"{pickled or stem}.bin")
    return PublishedFile(tuple(f"{folder}/{name}" for name in (*names, *pickles)), origin)


def _dwpose(name: str) -> PublishedFile:
    return PublishedFile((f"dwpose/{name}", f"DWPose/{name}"), _DWPOSE_HUB)


FILES: Mapping[str, PublishedFile] = {
    "mimicmotion": PublishedFile(("MimicMotion_1-1.pth",), f"{_HUB}/tencent/MimicMotion"),
    "dispose": PublishedFile(("DisPose.pth",), f"{_HUB}/lihxxx/DisPose"),
    "cmp": PublishedFile(
        (
            f"cmp/{_CMP_FILE}",
            _CMP_FILE,
            *(f"{root}{_CMP_FOLDER}/{_CMP_FILE}" for root in ("mimicmotion/modules/", "../mimicmotion/modules/", "")),
        ),
        f"{_HUB}/MyNiuuu/MOFA-Video-Hybrid, in models/{_CMP_FOLDER}",
    ),
    "person_detector": _dwpose("yolox_l.onnx"),
    "pose_estimator": _dwpose("dw-ll_ucoco_384.onnx"),
    "svd_vae": _weights(f"{SVD}/vae", "diffusion_pytorch_model", _SVD_HUB),
    "image_encoder": _weights(f"{SVD}/image_encoder", "model", _SVD_HUB, "pytorch_model"),
    "sd15_unet": _weights(f"{SD15}/unet", "diffusion_pytorch_model", _SD15_HUB),
    "sd15_vae": _weights(f"{SD15}/vae", "diffusion_pytorch_model", _SD15_HUB),
    "sd15_text_encoder": _weights(f"{SD15}/text_encoder", "model", _SD15_HUB, "pytorch_model"),
    "sd15_vocabulary": PublishedFile((f"{SD15}/tokenizer/vocab.json",), _SD15_HUB),
    "sd15_merges": PublishedFile((f"{SD15}/tokenizer/merges.txt",), _SD15_HUB),
}
"""Weight files and tokenizer files by name."""

CONFIG_FILES: Mapping[str, PublishedFile] = {
    "svd_unet": PublishedFile((f"{SVD}/unet/config.json",), _SVD_HUB),
    "svd_vae": PublishedFile((f"{SVD}/vae/config.json",), _SVD_HUB),
    "svd_scheduler": PublishedFile((f"{SVD}/scheduler/scheduler_config.json",), _SVD_HUB),
    "image_encoder": PublishedFile((f"{SVD}/image_encoder/config.json",), _SVD_HUB),
    "sd15_unet": PublishedFile((f"{SD15}/unet/config.json",), _SD15_HUB),
    "sd15_vae": PublishedFile((f"{SD15}/vae/config.json",), _SD15_HUB),
    "sd15_scheduler": PublishedFile((f"{SD15}/scheduler/scheduler_config.json",), _SD15_HUB),
    "sd15_text_encoder": PublishedFile((f"{SD15}/text_encoder/config.json",), _SD15_HUB),
}
"""Configuration files by their name in `Weights.configs`."""


@dataclass(frozen=True)
class Component:
    """A part of a weight file: the tensors whose names begin with `prefix`, which is cut off.

    Attributes:
        file: name in FILES.
        prefix: first part of the names in the file.
        nested: key of the dictionary of tensors in the file.
    """

    file: str
    prefix: str = ""
    nested: str = ""


COMPONENTS: Mapping[str, Component] = {
    "unet": Component("mimicmotion", "unet."),
    "pose_net": Component("mimicmotion", "pose_net."),
    "controlnet": Component("dispose"),
    "cmp": Component("cmp", "module.", nested="state_dict"),
    **{name: Component(name) for name in ("svd_vae", "image_encoder", "sd15_unet", "sd15_vae", "sd15_text_encoder")},
}
"""Components of `Weights.tensors` by name."""


def select_component(component: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors of a component by published name without prefix, from all tensors of its file.

    Names of no component are kept, so that they are reported as unexpected.
    """
    part = COMPONENTS[component]
    others = tuple(one.prefix for one in COMPONENTS.values() if one.file == part.file and one is not part)
    return {name.removeprefix(part.prefix): tensor for name, tensor in tensors.items() if not name.startswith(others)}


class Weights(ABC):
    """The source of tensors, configurations and token ids for network builders: files, or a stand-in."""

    @property
    @abstractmethod
    def configs(self) -> Mapping[str, Config]:
        """Parsed configuration files by name, see CONFIG_FILES."""

    @abstractmethod
    def tensors(self, component: str) -> Tensors:
        """Return the tensors of a component (see COMPONENTS) by published name without prefix; they are read-only."""

    @abstractmethod
    def source(self, component: str) -> str:
        """Return the name of a component's origin for error messages."""

    @abstractmethod
    def tokenize(self, prompt: str) -> Tensor:
        """Return the padded token ids of a prompt for the SD 1.5 text encoder: int64 [1, 77]."""

    @abstractmethod
    def fingerprint(self, file: str) -> Mapping[str, Any]:
        """Return what identifies the contents of a file (see FILES) in build keys, as JSON values."""

    @property
    @abstractmethod
    def provenance(self) -> Mapping[str, Mapping[str, Any]]:
        """Fingerprint of every file, for the manifest."""

    @abstractmethod
    def published_file(self, name: str, scratch: Path) -> Path:
        """Return the ONNX file of a network that is published as one.

        Args:
            name: "person_detector" or "pose_estimator".
            scratch: existing folder for the file where it is not on disk already.
        """


class Checkpoint(Weights):
    """A folder of published files. They are located at once, and read when a component is asked for.

    Args:
        folder: `pretrained_weights` in the README of DisPose.
        complete: whether all files must be there. A folder that lacks some can be examined, and no engine can be built.

    Raises:
        CheckpointError: the folder does not exist, or files are missing; all of them are named, with their origins.
    """

    def __init__(self, folder: str | Path, *, complete: bool = True) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(
                f"{self.folder} is not a directory",
                remedy="Pass the folder that holds the published weights, which `dispose-rt download --output weights` "
                "makes.",
            )
        self._files = _locate(self.folder, FILES)
        self._config_files = _locate(self.folder, CONFIG_FILES)
        missing = [file for name, file in FILES.items() if name not in self._files]
        missing += [file for name, file in CONFIG_FILES.items() if name not in self._config_files]
        if missing and complete:
            raise CheckpointError(
                f"{self.folder} lacks {len(missing)} of the published files:",
                [f"{file.paths[0]}, from {file.origin}" for file in missing],
                "Download each to its path. Weights without '.fp16' in their name, '.bin' files, a folder DWPose, "
                f"and {_CMP_FILE} right in the folder or where the research code has it are found as well.",
            )
        self._files = {name: self._files.get(name, self.folder / file.paths[0]) for name, file in FILES.items()}
        self._config_files = {
            name: self._config_files.get(name, self.folder / file.paths[0]) for name, file in CONFIG_FILES.items()
        }
        self._opened: dict[str, Tensors] = {}
        self._fingerprints: dict[Path, Mapping[str, Any]] = {}
        self._stamps: dict[Path, Stamp] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the opened files out: another process opens them itself, but need not hash them again."""
        return {**self.__dict__, "_opened": {}}

    def path(self, name: str) -> Path:
        """Return the path of a file of FILES, or where it belongs."""
        return self._files[name]

    @cached_property
    def configs(self) -> Mapping[str, Config]:
        return {name: self.read_config(name) for name in self._config_files}

    def tensors(self, component: str) -> Tensors:
        """Return all tensors of a component by published name without prefix.

        They may be mapped from the file and shared between calls, so they are read-only.

        Raises:
            CheckpointError: the file is damaged, holds anything but tensors, or has changed since it was hashed.
        """
        part = COMPONENTS[component]
        if part.file not in self._opened:
            path = self.path(part.file)
            self._opened[part.file] = read_tensors(path, part.nested)
            hashed = self._stamps.get(path)
            if hashed is not None and hashed != stamp_of(path.stat()):
                remedy = "Leave the weights alone while they are used, and run the same command again."
                raise CheckpointError(f"{path} has changed since the build began", remedy=remedy)
        return select_component(component, self._opened[part.file])

    def headers(self, file: str) -> Tensors:
        """Return names, dtypes and shapes of a weight file of FILES, as tensors on the meta device.

        Raises:
            CheckpointError: the file is damaged, or holds anything but tensors.
        """
        nested = next(part.nested for part in COMPONENTS.values() if part.file == file)
        return read_headers(self.path(file), nested)

    def read_config(self, name: str) -> Config:
        """Read a file of CONFIG_FILES.

        Raises:
            CheckpointError: it is not JSON, or holds something other than an object.
        """
        return _read_json(self.config_path(name))

    def config_path(self, name: str) -> Path:
        """Return the path of a file of CONFIG_FILES, or where it belongs."""
        return self._config_files[name]

    def source(self, component: str) -> str:
        return str(self.path(COMPONENTS[component].file))

    def tokenize(self, prompt: str) -> Tensor:
        from transformers import CLIPTokenizer

        folder = self.path("sd15_vocabulary").parent
        try:
            tokenizer = CLIPTokenizer.from_pretrained(str(folder))
            encoded = tokenizer(prompt, padding="max_length", max_length=PROMPT_TOKENS, truncation=True)
        except Exception as error:  # the tokenizer library raises bare Exceptions
            problem = f"the tokenizer in {folder} cannot be used: {first_line(error)}"
            raise CheckpointError(problem, remedy=download_again(folder)) from error
        return torch.tensor([encoded["input_ids"]], dtype=torch.int64)

    def fingerprint(self, file: str) -> Mapping[str, Any]:
        """Return size and SHA-256 of a file, which is read once.

        Raises:
            CheckpointError: it cannot be read.
        """
        return self._fingerprint(self.path(file))

    def _fingerprint(self, path: Path) -> Mapping[str, Any]:
        if path not in self._fingerprints:
            try:
                status = path.stat()
                found = {"size_bytes": status.st_size, "sha256": sha256_of(path)}
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error}", remedy=download_again(path)) from error
            self._fingerprints[path], self._stamps[path] = found, stamp_of(status)
        return self._fingerprints[path]

    @property
    def provenance(self) -> Mapping[str, Mapping[str, Any]]:
        """Size and SHA-256 of every file, by path relative to the folder; all are read once."""
        return {_relative(path, self.folder): self._fingerprint(path) for path in self._paths}

    @property
    def state(self) -> tuple[tuple[Path, Stamp], ...]:
        """What changes when any of the files does."""
        return tuple((path.absolute(), stamp_of(path.stat())) for path in self._paths)

    @property
    def _paths(self) -> tuple[Path, ...]:
        return *self._files.values(), *self._config_files.values()

    def published_file(self, name: str, scratch: Path) -> Path:
        return self.path(name)


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], source: str, unused: Collection[str] = ()) -> None:
    """Load exactly the published tensors into a module, as float32 copies.

    Args:
        module: filled in place; may live on the meta device, and leaves it then (non-persistent buffers stay there).
        tensors: published tensors by name, of any floating-point dtype.
        source: their file, for the error message.
        unused: names of tensors to ignore.

    Raises:
        CheckpointError: names are missing or unexpected, or tensors have another shape or kind; LISTED_PROBLEMS of
            them are listed.
    """
    expected = module.state_dict()
    given = {name: tensor for name, tensor in tensors.items() if name not in unused}
    problems = list(_differences(expected, given))
    if (report := _reporter.get()) is not None:
        report(problems)
        return
    if problems:
        raise CheckpointError(
            f"{source} does not hold the tensors of {type(module).__name__}:", shorten(problems), REMEDY
        )
    # assigned, not copied into place: the module may be on the meta device; copied, for it may fold weights in place
    module.load_state_dict({name: _to_float32(tensor) for name, tensor in given.items()}, assign=True)


_reporter: ContextVar[Callable[[list[str]], None] | None] = ContextVar("reporter", default=None)


@contextmanager
def only_compare(report: Callable[[list[str]], None]) -> Iterator[None]:
    """Have `load_strict` pass everything that is wrong to `report`, and load nothing, within the block."""
    token = _reporter.set(report)
    try:
        yield
    finally:
        _reporter.reset(token)


def shorten(problems: Sequence[str]) -> list[str]:
    """Cut a list of problems to LISTED_PROBLEMS lines, and say how many there are more."""
    cut = [f"... and {len(problems) - LISTED_PROBLEMS:,} more"] if len(problems) > LISTED_PROBLEMS else []
    return [*problems[:LISTED_PROBLEMS], *cut]


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)


def _differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in expected.items():
        if name not in given:
            yield f"missing: {name} {list(tensor.shape)}"
        elif given[name].shape != tensor.shape:
            yield f"wrong shape: {name} is {list(given[name].shape)}, expected {list(tensor.shape)}"
        elif given[name].is_floating_point() != tensor.is_floating_point():
            yield f"wrong kind: {name} is {given[name].dtype}, expected {tensor.dtype}"
    for name in given:
        if name not in expected:
            yield f"unexpected: {name} {list(given[name].shape)}"


def _locate(folder: Path, wanted: Mapping[str, PublishedFile]) -> dict[str, Path]:
    """Return the first existing path of every file that has one."""
    found = {}
    for name, file in wanted.items():
        path = next((folder / path for path in file.paths if (folder / path).is_file()), None)
        if path is not None:
            found[name] = path
    return found


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _read_json(path: Path) -> Config:
    try:
        if impostor := find_impostor(path):
            raise ValueError(f"it is {impostor}")
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}", remedy=download_again(path)) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path} holds a {type(config).__name__}, expected an object", remedy=download_again(path)
        )
    return config
