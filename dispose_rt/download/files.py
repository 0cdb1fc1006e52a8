"""The published files that the exporter reads: where the hub has them and where they lie in a checkpoint folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError

SVD = "stable-video-diffusion-img2vid-xt-1-1"
SD15 = "stable-diffusion-v1-5"
_CMP_FILE = "ckpt_iter_42000.pth.tar"
_CMP_FOLDER = "models/cmp/experiments/semiauto_annot/resnet50_vip+mpii_liteflow/checkpoints"


@dataclass(frozen=True)
class Choice:
    """One of several files that serve the same purpose.

    Attributes:
        remote: path in the repository.
        local: path in the checkpoint folder, with "/" between its parts.
    """

    remote: str
    local: str


@dataclass(frozen=True)
class WantedFile:
    """A file that is needed; any of the choices will do, the first is the best."""

    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Repository:
    """A model repository of the hub, and the files that are needed from it.

    Attributes:
        name: users select it by this name.
        repo: owner and name on the hub.
        wanted: the files that are needed, configurations first.
        gated: whether its licence has to be accepted on the hub before files can be fetched.
    """

    name: str
    repo: str
    wanted: tuple[WantedFile, ...]
    gated: bool = False


def _single(remote: str, local: str) -> WantedFile:
    return WantedFile((Choice(remote, local),))


def _weights(folder: str, stem: str, pickled: str = "") -> tuple[str, ...]:
    """Weights of a diffusers or transformers folder: half precision and safetensors first."""
    pickled = pickled or stem
    names = (f"{stem}.fp16.safetensors", f"{stem}.safetensors", f"{pickled}.fp16.bin", f"{pickled}.bin")
    return tuple(f"{folder}/{name}" for name in names)


def _mirrored(folder: str, *wanted: str | tuple[str, ...]) -> tuple[WantedFile, ...]:
    """Files that have the same path in the repository and in a folder of their own."""
    paths = (one if isinstance(one, tuple) else (one,) for one in wanted)
    return tuple(WantedFile(tuple(Choice(path, f"{folder}/{path}") for path in choices)) for choices in paths)


def _dwpose(name: str) -> WantedFile:
    return WantedFile((Choice(name, f"dwpose/{name}"), Choice(name, f"DWPose/{name}")))


REPOSITORIES: Mapping[str, Repository] = {
    one.name: one
    for one in (
        Repository("mimicmotion", "tencent/MimicMotion", (_single("MimicMotion_1-1.pth", "MimicMotion_1-1.pth"),)),
        Repository("dispose", "lihxxx/DisPose", (_single("DisPose.pth", "DisPose.pth"),)),
        Repository(
            "svd",
            f"stabilityai/{SVD}",
            _mirrored(
                SVD,
                "unet/config.json",
                "vae/config.json",
                "scheduler/scheduler_config.json",
                "image_encoder/config.json",
                _weights("vae", "diffusion_pytorch_model"),
                _weights("image_encoder", "model", "pytorch_model"),
            ),
            gated=True,
        ),
        Repository(
            "sd15",
            f"{SD15}/{SD15}",
            _mirrored(
                SD15,
                "unet/config.json",
                "vae/config.json",
                "scheduler/scheduler_config.json",
                "text_encoder/config.json",
                "tokenizer/vocab.json",
                "tokenizer/merges.txt",
                _weights("unet", "diffusion_pytorch_model"),
                _weights("vae", "diffusion_pytorch_model"),
                _weights("text_encoder", "model", "pytorch_model"),
            ),
        ),
        Repository("dwpose", "yzd-v/DWPose", (_dwpose("yolox_l.onnx"), _dwpose("dw-ll_ucoco_384.onnx"))),
        Repository(
            "cmp",
            "MyNiuuu/MOFA-Video-Hybrid",
            (
                WantedFile(
                    tuple(Choice(f"{_CMP_FOLDER}/{_CMP_FILE}", path) for path in (f"cmp/{_CMP_FILE}", _CMP_FILE))
                ),
            ),
        ),
    )
}
"""Every repository by name, in the order of the README's table."""


def select_repositories(names: Sequence[str] = ()) -> tuple[Repository, ...]:
    """Return repositories by name, gated ones first; no names select all.

    Raises:
        InputError: a name is unknown.
    """
    if unknown := [name for name in names if name not in REPOSITORIES]:
        raise InputError(f"there are no weights called {unknown[0]!r}; choose from {', '.join(REPOSITORIES)}")
    chosen = [one for name, one in REPOSITORIES.items() if not names or name in names]
    return tuple(sorted(chosen, key=lambda one: not one.gated))


def owner_of(local: str) -> tuple[Repository, WantedFile] | None:
    """Repository and purpose of a path in a checkpoint folder; None for a path that no build reads."""
    for repository, wanted in _all_wanted():
        if any(choice.local == local for choice in wanted.choices):
            return repository, wanted
    return None


def _all_wanted() -> Iterator[tuple[Repository, WantedFile]]:
    return ((repository, wanted) for repository in REPOSITORIES.values() for wanted in repository.wanted)
