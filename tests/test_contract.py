"""The contract resolves to the published sizes, and its networks fit together."""

from __future__ import annotations

import pytest

from dispose_rt.contract import DYNAMIC, NETWORKS, RESIDUAL_MULTIPLICITY, RESIDUALS, Sizes
from dispose_rt.errors import InputError
from tests.every import each

FULL = Sizes(width=576, height=1024)


def test_published_sizes():
    shapes = {t.name: FULL.resolve(t.shape) for t in (*NETWORKS["unet"].inputs, *NETWORKS["unet"].outputs)}
    assert shapes["latents"] == (16, 4, 128, 72)
    assert shapes["residual_0"] == (32, 320, 128, 72)
    assert shapes["residual_12"] == (32, 1280, 16, 9)
    assert shapes["noise_pred"] == (2, 16, 4, 128, 72)


def test_every_symbol_resolves():
    for spec in NETWORKS.values():
        for tensor in (*spec.inputs, *spec.outputs):
            for dim in FULL.resolve(tensor.shape):
                assert isinstance(dim, int) or dim in DYNAMIC, (spec.name, tensor.name, dim)
                assert not isinstance(dim, int) or dim > 0


@each(
    producer__consumer=[
        ("cmp_image_encoder", "cmp_flow_decoder"),
        ("controlnet", "unet"),
    ]
)
def test_outputs_are_the_next_networks_inputs(producer, consumer):
    taken = {tensor.name: tensor for tensor in NETWORKS[consumer].inputs}
    for tensor in NETWORKS[producer].outputs:
        assert taken[tensor.name] == tensor


def test_one_multiplicity_per_residual():
    assert len(RESIDUAL_MULTIPLICITY) == RESIDUALS == len(NETWORKS["controlnet"].outputs)


def test_multiplicities_are_the_measured_ones(golden):
    assert (*golden("nets")["unet.residual_multiplicity"].tolist(), 1) == RESIDUAL_MULTIPLICITY


@each(
    changes__words=[
        ({"width": 100}, "width is 100"),
        ({"height": 0}, "height is 0"),
        ({"tile": 1}, "tile is 1"),
        ({"chunk": 0}, "chunk"),
    ]
)
def test_unusable_sizes_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        Sizes(**({"width": 64, "height": 64} | changes))
