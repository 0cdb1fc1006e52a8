"""Published weight files: their layout, how strictly they are loaded, and what damaged or foreign ones lead to."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from dispose_rt_export import checkpoints
from dispose_rt_export.checkpoints import COMPONENTS, CONFIG_FILES, FILES, Checkpoint, Weights, load_strict
from dispose_rt_export.networks.cmp import build_cmp_flow_decoder, build_cmp_image_encoder
from dispose_rt_export.networks.dift import build_dift, rename_old_attention
from dispose_rt_export.networks.image_encoder import build_image_encoder
from dispose_rt_export.networks.vae_decoder import build_vae_decoder
from dispose_rt_export.networks.vae_encoder import build_vae_encoder
from safetensors.torch import save_file
from torch import Tensor, nn

from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.errors import CheckpointError
from tests.every import each

GOLDEN = Path(__file__).parents[1] / "golden"
DTYPES = {"F16": torch.float16, "F32": torch.float32, "I64": torch.int64}
SPECS = {"image_encoder": "svd_image_encoder"}
"""Key lists whose file name is not that of the weight file in FILES."""

BUILDERS: Mapping[str, Callable[[Weights], nn.Module]] = {
    "cmp_image_encoder": build_cmp_image_encoder,
    "cmp_flow_decoder": build_cmp_flow_decoder,
    "image_encoder": build_image_encoder,
    "vae_encoder": build_vae_encoder,
    "vae_decoder": build_vae_decoder,
    "dift": build_dift,
}


def published_tensors(folder: str, component: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor of a component, from the recorded lists of the published files."""
    part = COMPONENTS[component]
    listed = json.loads((GOLDEN / folder / f"{SPECS.get(part.file, part.file)}.json").read_text())["tensors"]
    return {
        name.removeprefix(part.prefix): (tuple(shape), DTYPES[dtype])
        for name, shape, dtype in listed
        if name.startswith(part.prefix)
    }


class PublishedShapes(Weights):
    """Weights of the published sizes without values: everything is on the meta device."""

    def __init__(self, edit: Callable[[str, dict[str, Tensor]], None] = lambda component, tensors: None) -> None:
        self.edit = edit

    @property
    def configs(self) -> Mapping[str, Mapping[str, object]]:
        texts = json.loads((GOLDEN / "spec_full" / "configs.json").read_text())
        return {name: json.loads(texts[file.paths[0]]) for name, file in CONFIG_FILES.items()}

    def tensors(self, component: str) -> dict[str, Tensor]:
        shapes = published_tensors("spec_full", component)
        tensors = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in shapes.items()}
        self.edit(component, tensors)
        return tensors

    def source(self, component: str) -> str:
        return f"the file of {component}"

    def tokenize(self, prompt: str) -> Tensor:
        return torch.zeros(1, 77, dtype=torch.int64, device="meta")

    def fingerprint(self, file: str) -> Mapping[str, object]:
        return {"shapes": file}

    @property
    def provenance(self) -> Mapping[str, Mapping[str, object]]:
        return {file: self.fingerprint(file) for file in FILES}

    def published_file(self, name: str, scratch: Path) -> Path:
        raise FileNotFoundError(name)


# ---------------------------------------------------------------- the published layout


def test_every_component_holds_the_listed_tensors(golden_checkpoint: Path) -> None:
    checkpoint = Checkpoint(golden_checkpoint)
    for component in COMPONENTS:
        read = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in checkpoint.tensors(component).items()}
        assert read == published_tensors("spec", component), component
        assert Path(checkpoint.source(component)).is_file(), component


def test_configs_are_parsed(golden_checkpoint: Path) -> None:
    configs = Checkpoint(golden_checkpoint).configs
    assert configs.keys() == CONFIG_FILES.keys()
    assert configs["svd_vae"]["scaling_factor"] == 0.18215
    assert configs["svd_scheduler"]["sigma_max"] == 700.0


@each(network=BUILDERS)
def test_published_sizes_fit(network: str) -> None:
    """Every key and shape of the full-size files is taken, and the outputs have the contract's shapes."""
    spec, sizes = NETWORKS[network], Sizes(1024, 576)
    module = BUILDERS[network](PublishedShapes())
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}
    dynamic = dict.fromkeys(spec.dynamic, 3)
    inputs = [torch.empty(sizes.resolve(tensor.shape, dynamic), device="meta") for tensor in spec.inputs]
    with torch.no_grad():
        outputs = module(*inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    assert [tuple(output.shape) for output in outputs] == [sizes.resolve(t.shape, dynamic) for t in spec.outputs]


@each(
    network__component__key=[
        ("cmp_image_encoder", "cmp", "image_encoder.layer3.0.conv2.weight"),
        ("cmp_flow_decoder", "cmp", "flow_decoder.head.bias"),
        ("image_encoder", "image_encoder", "visual_projection.weight"),
        ("vae_encoder", "svd_vae", "encoder.conv_in.weight"),
        ("vae_decoder", "svd_vae", "decoder.time_conv_out.bias"),
        ("dift", "sd15_unet", "mid_block.resnets.0.conv1.weight"),
        ("dift", "sd15_vae", "encoder.mid_block.attentions.0.query.weight"),
        ("dift", "sd15_text_encoder", "text_model.final_layer_norm.weight"),
    ]
)
def test_builders_are_strict(network: str, component: str, key: str) -> None:
    def edit(name: str, tensors: dict[str, Tensor]) -> None:
        if name == component:
            del tensors[key]
            tensors["something.else"] = torch.empty(2, 3)

    with pytest.raises(CheckpointError) as caught:
        BUILDERS[network](PublishedShapes(edit))
    assert f"the file of {component}" in str(caught.value)
    kinds = sorted(problem.partition(":")[0] for problem in caught.value.problems)
    assert kinds == ["missing", "unexpected"]


def test_old_and_new_attention_names_are_the_same_network() -> None:
    old = PublishedShapes().tensors("sd15_vae")
    new = rename_old_attention(old)
    assert "encoder.mid_block.attentions.0.query.weight" in old
    assert not any(name.split(".")[-2] in ("query", "key", "value", "proj_attn") for name in new)
    assert rename_old_attention(new).keys() == new.keys()
    assert len(new) == len(old)


# ---------------------------------------------------------------- load_strict


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)


def pair_tensors() -> dict[str, Tensor]:
    tensors = {name: tensor.clone() for name, tensor in Pair().state_dict().items()}
    return {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}


@each(device=["cpu", "meta"])
def test_load_strict_makes_float32_copies(device: str) -> None:
    tensors = pair_tensors()
    with torch.device(device):
        module = Pair()
    load_strict(module, tensors, "file.pth")
    assert module.linear.weight.dtype == torch.float32
    assert module.norm.num_batches_tracked.dtype == torch.int64
    assert torch.equal(module.linear.weight, tensors["linear.weight"].float())
    float_tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    load_strict(module, float_tensors, "file.pth")
    with torch.no_grad():
        module.linear.weight.zero_()
    assert float_tensors["linear.weight"].abs().sum() > 0


def test_load_strict_lists_everything_at_once() -> None:
    tensors = pair_tensors()
    del tensors["linear.bias"], tensors["norm.weight"]
    tensors["linear.weight"] = torch.zeros(2, 4)
    tensors["norm.bias"] = torch.zeros(2, dtype=torch.int8)
    tensors["linear.lora"] = torch.zeros(1)
    before = Pair()
    weight = before.linear.weight
    with pytest.raises(CheckpointError) as caught:
        load_strict(before, tensors, "weights/file.pth")
    assert set(caught.value.problems) == {
        "missing: linear.bias [2]",
        "missing: norm.weight [2]",
        "wrong shape: linear.weight is [2, 4], expected [2, 3]",
        "wrong kind: norm.bias is torch.int8, expected torch.float32",
        "unexpected: linear.lora [1]",
    }
    assert str(caught.value).startswith("weights/file.pth does not hold the tensors of Pair")
    assert "as its authors published it" in str(caught.value)
    assert before.linear.weight is weight


def test_load_strict_drops_unused_names_only() -> None:
    tensors = pair_tensors() | {"position_ids": torch.arange(3)}
    load_strict(Pair(), tensors, "file.pth", unused={"position_ids", "not there"})
    with pytest.raises(CheckpointError, match="unexpected: position_ids"):
        load_strict(Pair(), tensors, "file.pth")


# ---------------------------------------------------------------- missing and damaged files


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A folder in which every published file exists, and is empty."""
    for file in (*FILES.values(), *CONFIG_FILES.values()):
        path = tmp_path / "weights" / file.paths[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "weights"


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a directory"):
        Checkpoint(tmp_path / "nowhere")


def test_all_missing_files_are_named_with_their_origin(layout: Path) -> None:
    gone = {
        FILES["dispose"]: "huggingface.co/lihxxx/DisPose",
        FILES["cmp"]: "huggingface.co/MyNiuuu/MOFA-Video-Hybrid",
        FILES["pose_estimator"]: "huggingface.co/yzd-v/DWPose",
        FILES["mimicmotion"]: "huggingface.co/tencent/MimicMotion",
        FILES["sd15_unet"]: "huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5",
        FILES["svd_vae"]: "huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt-1-1 (gated",
        CONFIG_FILES["svd_scheduler"]: "huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt-1-1 (gated",
    }
    for file in gone:
        (layout / file.paths[0]).unlink()
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(layout)
    assert len(caught.value.problems) == len(gone)
    for file, origin in gone.items():
        assert any(problem.startswith(file.paths[0]) and origin in problem for problem in caught.value.problems)


@pytest.mark.parametrize(("name", "path"), [(name, path) for name, file in FILES.items() for path in file.paths[1:]])
def test_alternative_places_are_found(layout: Path, name: str, path: str) -> None:
    (layout / path).parent.mkdir(parents=True, exist_ok=True)
    (layout / FILES[name].paths[0]).rename(layout / path)
    assert Checkpoint(layout).path(name) == layout / path


def test_half_precision_files_are_preferred_as_in_the_reference(layout: Path) -> None:
    (layout / FILES["svd_vae"].paths[1]).touch()
    assert Checkpoint(layout).path("svd_vae").name == "diffusion_pytorch_model.fp16.safetensors"


TENSORS = {"module.a.weight": torch.arange(6.0).view(2, 3), "module.a.bias": torch.ones(2, dtype=torch.float16)}


def write_safetensors(path: Path) -> None:
    save_file(TENSORS, path)


def write_zip(path: Path) -> None:
    torch.save(TENSORS, path)


def write_legacy(path: Path) -> None:
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)


def test_file_formats(layout: Path) -> None:
    """Zip and pre-zip pickles and safetensors; CMP's tensors lie one level down and carry a prefix."""
    write_zip(layout / FILES["dispose"].paths[0])
    torch.save(
        {"state_dict": TENSORS, "step": 42000}, layout / FILES["cmp"].paths[0], _use_new_zipfile_serialization=False
    )
    write_safetensors(layout / FILES["svd_vae"].paths[0])
    (layout / FILES["sd15_vae"].paths[0]).unlink()
    write_legacy(layout / FILES["sd15_vae"].paths[-1])
    checkpoint = Checkpoint(layout)
    for component in ("controlnet", "svd_vae", "sd15_vae"):
        tensors = checkpoint.tensors(component)
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in tensors.items())
    assert checkpoint.tensors("cmp").keys() == {"a.weight", "a.bias"}


def test_training_checkpoint_in_the_old_format(layout: Path) -> None:
    """CMP's file was written by a training loop: beside the ordered state dict lie the step and the optimizer."""
    module = nn.DataParallel(Pair())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    sum(parameter.sum() for parameter in module.parameters()).backward()
    optimizer.step()
    content = {"step": 42000, "state_dict": module.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, layout / FILES["cmp"].paths[0], _use_new_zipfile_serialization=False)
    loaded = Pair()
    load_strict(loaded, Checkpoint(layout).tensors("cmp"), "cmp")
    assert torch.equal(loaded.linear.weight, module.module.linear.weight)


def test_names_without_a_prefix(layout: Path) -> None:
    """A name that belongs to no component must not be overlooked: loading lists it as unexpected."""
    tensor = torch.zeros(1)
    torch.save({"unet.a": tensor, "pose_net.b": tensor, "vae.c": tensor}, layout / FILES["mimicmotion"].paths[0])
    torch.save({"state_dict": {"module.a": tensor, "foreign": tensor}}, layout / FILES["cmp"].paths[0])
    checkpoint = Checkpoint(layout)
    assert checkpoint.tensors("unet").keys() == {"a", "vae.c"}
    assert checkpoint.tensors("pose_net").keys() == {"b", "vae.c"}
    assert checkpoint.tensors("cmp").keys() == {"a", "foreign"}


@pytest.mark.parametrize("keep", [0.0, 0.4, 0.97])
@pytest.mark.parametrize(
    ("name", "write"), [("svd_vae", write_safetensors), ("dispose", write_zip), ("dispose", write_legacy)]
)
def test_truncated_files_are_named(layout: Path, name: str, write: Callable[[Path], None], keep: float) -> None:
    path = layout / FILES[name].paths[0]
    write(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    component = {"dispose": "controlnet"}.get(name, name)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        Checkpoint(layout).tensors(component)
    assert str(path) in str(caught.value)
    assert "Download" in str(caught.value)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_code_in_a_pickle_is_refused_and_not_run(layout: Path, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    path = layout / FILES["dispose"].paths[0]
    torch.save({"a": torch.zeros(1), "b": Payload(target)}, path)
    with pytest.raises(CheckpointError, match="could run code") as caught:
        Checkpoint(layout).tensors("controlnet")
    assert str(path) in str(caught.value)
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert target.exists()


@pytest.mark.parametrize("content", [{}, [torch.zeros(1)], {"a": torch.zeros(1), "step": 3}, torch.zeros(2)])
def test_files_without_named_tensors(layout: Path, content: object) -> None:
    torch.save(content, layout / FILES["dispose"].paths[0])
    with pytest.raises(CheckpointError, match="holds no dictionary of named tensors"):
        Checkpoint(layout).tensors("controlnet")


def test_cmp_without_its_state_dict(layout: Path) -> None:
    torch.save(TENSORS, layout / FILES["cmp"].paths[0])
    with pytest.raises(CheckpointError, match="under 'state_dict'"):
        Checkpoint(layout).tensors("cmp")


@pytest.mark.parametrize("text", ["", '{"a": ', "[1]", "\N{PILE OF POO}"])
def test_damaged_configs_are_named(layout: Path, text: str) -> None:
    for file in CONFIG_FILES.values():
        (layout / file.paths[0]).write_text("{}")
    path = layout / CONFIG_FILES["sd15_vae"].paths[0]
    path.write_text(text, encoding="utf-16" if text == "\N{PILE OF POO}" else "utf-8")
    with pytest.raises(CheckpointError) as caught:
        _ = Checkpoint(layout).configs
    assert str(path) in str(caught.value)


# ---------------------------------------------------------------- tokenizer and provenance


@pytest.fixture
def with_tokenizer(layout: Path, golden_checkpoint: Path) -> Path:
    for name in ("sd15_vocabulary", "sd15_merges"):
        shutil.copyfile(golden_checkpoint / FILES[name].paths[0], layout / FILES[name].paths[0])
    return layout


def test_vocabulary_and_merges_suffice(with_tokenizer: Path, golden: Callable[[str], dict[str, object]]) -> None:
    ids = Checkpoint(with_tokenizer).tokenize("photo of a human")
    assert ids.tolist() == [golden("nets")["dift.input_ids"].tolist()]  # type: ignore[attr-defined]


def test_damaged_tokenizer_is_named(with_tokenizer: Path) -> None:
    path = with_tokenizer / FILES["sd15_vocabulary"].paths[0]
    path.write_text(path.read_text()[:100])
    with pytest.raises(CheckpointError, match="tokenizer"):
        Checkpoint(with_tokenizer).tokenize("photo of a human")


def test_provenance_hashes_every_file_once(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def count(path: Path) -> str:
        hashed.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(checkpoints, "sha256_of", count)
    (layout / "DisPose.pth").write_bytes(b"12345")
    checkpoint = Checkpoint(layout)
    assert not hashed
    record = checkpoint.provenance["DisPose.pth"]
    assert record == {"size_bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}
    assert len(hashed) == len(checkpoint.provenance) == len(FILES) + len(CONFIG_FILES)
