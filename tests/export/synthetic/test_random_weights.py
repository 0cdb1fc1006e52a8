"""Random weights have the published names, shapes, dtypes and configurations, and networks that compute with them."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from dispose_rt_export.builds.plan import RECIPES
from dispose_rt_export.checkpoints import COMPONENTS, CONFIG_FILES, FILES, Checkpoint
from dispose_rt_export.compile.trace import sample_inputs
from dispose_rt_export.synthetic.random_weights import RandomWeights, random_module
from dispose_rt_export.synthetic.shapes import STORED_DTYPES, tensor_shapes

from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.errors import InputError
from tests.golden_data import GOLDEN

#: name in checkpoints.FILES -> name in tests/golden/spec_full, where they differ
SPEC_NAMES = {"image_encoder": "svd_image_encoder"}
DTYPES = {"F16": torch.float16, "F32": torch.float32, "I64": torch.int64}
TOY_SIZES = Sizes(128, 64, tile=2, chunk=2, channels=(32, 64, 128, 128), embed=48, dift=96)


def published_tensors(file: str) -> list[tuple[str, list[int], str]]:
    spec = json.loads((GOLDEN / "spec_full" / f"{SPEC_NAMES.get(file, file)}.json").read_text())
    return spec["tensors"]


@pytest.mark.parametrize("file", STORED_DTYPES)
def test_full_scale_has_the_published_tensors(file):
    shapes = tensor_shapes(file, RandomWeights("full").configs)
    assert {name: list(shape) for name, shape in shapes.items()} == {
        name: shape for name, shape, _ in published_tensors(file)
    }


def test_full_scale_has_the_published_configurations():
    published = json.loads((GOLDEN / "spec_full" / "configs.json").read_text())
    for name, config in RandomWeights("full").configs.items():
        assert config == json.loads(published[CONFIG_FILES[name].paths[0]]), name


@pytest.mark.parametrize("component", ["svd_vae", "cmp", "pose_net"])
def test_tensors_are_stored_as_published(component):
    part = COMPONENTS[component]
    tensors = RandomWeights("full").tensors(component)
    wanted = {
        name.removeprefix(part.prefix): (tuple(shape), DTYPES[dtype])
        for name, shape, dtype in published_tensors(part.file)
        if name.startswith(part.prefix)
    }
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()} == wanted
    for name, tensor in tensors.items():
        assert tensor.isfinite().all(), name


def test_seed_decides_every_tensor():
    first, again, other = (RandomWeights("toy", seed).tensors("svd_vae") for seed in (1, 1, 2))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
        assert not torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("network", RECIPES)
def test_every_network_computes_something_finite_in_half_precision(network):
    """Values of about 1 everywhere: what half precision represents well, as in the published networks."""
    spec = NETWORKS[network]
    module = random_module(network, scale="toy")
    inputs = sample_inputs(spec, TOY_SIZES, "float32", dict.fromkeys(spec.dynamic, 2))
    with torch.inference_mode():
        outputs = module(*inputs.values())
    for name, output in zip(spec.outputs, (outputs,) if torch.is_tensor(outputs) else outputs, strict=True):
        assert output.isfinite().all(), name
        assert 0.01 < output.std() < 100, name


@pytest.mark.parametrize("network", ["person_detector", "pose_estimator"])
def test_published_networks_have_stand_ins(tmp_path: Path, network):
    path = RandomWeights("full").published_file(network, tmp_path)
    assert path.relative_to(tmp_path) == Path(Path(FILES[network].paths[0]).name)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    spec = NETWORKS[network]
    inputs = {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in spec.inputs}
    outputs = session.run([tensor.name for tensor in spec.outputs], inputs)
    assert [output.shape for output in outputs] == [tensor.shape for tensor in spec.outputs]


def test_fingerprints_tell_weights_apart_and_are_json():
    first, again, other = RandomWeights("full"), RandomWeights("full"), RandomWeights("full", seed=1)
    for file in FILES:
        assert first.fingerprint(file) == again.fingerprint(file) != other.fingerprint(file)
        assert first.fingerprint(file) != RandomWeights("toy").fingerprint(file)
    assert set(json.loads(json.dumps(copy.deepcopy(first.provenance)))) == set(FILES)


def test_prompts_become_tokens_of_the_vocabulary():
    weights = RandomWeights("full")
    tokens = weights.tokenize("photo of a human")
    assert (tokens.shape, tokens.dtype) == ((1, 77), torch.int64)
    assert tokens.min() >= 0
    assert tokens.max() < weights.configs["sd15_text_encoder"]["vocab_size"]
    assert tokens[0, 0] != tokens[0, 5] == tokens[0, 76]
    assert weights.tokenize("word " * 100).shape == (1, 77)
    assert not torch.equal(tokens, weights.tokenize("photo of a cat"))


def test_weights_are_sent_to_other_processes_without_their_tensors(toy_checkpoint: Path):
    checkpoint = Checkpoint(toy_checkpoint)
    checkpoint.tensors("svd_vae")
    checkpoint.fingerprint("svd_vae")
    random = RandomWeights("full")
    for weights in (checkpoint, random):
        body = pickle.dumps(weights)
        assert len(body) < 20_000
        received = pickle.loads(body)
        assert received.fingerprint("svd_vae") == weights.fingerprint("svd_vae")
        assert received.configs == weights.configs
    assert torch.equal(
        pickle.loads(pickle.dumps(checkpoint)).tensors("svd_vae")["quant_conv.weight"],
        checkpoint.tensors("svd_vae")["quant_conv.weight"],
    )


def test_unknown_scale_is_refused():
    with pytest.raises(InputError, match="full, toy"):
        RandomWeights("huge")
