"""Dtypes and shapes of an engine's tensors, compared with the contract."""

from __future__ import annotations

from collections.abc import Mapping

from ..contract import NETWORKS, Sizes

Signature = tuple[str, tuple[int | str, ...]]
"""Dtype and shape of a tensor, e.g. ("float16", ("frames", 320, 72, 128)); dynamic dimensions are names."""


def contract_signature(network: str, sizes: Sizes, compute_dtype: str) -> dict[str, Signature]:
    """Return dtype and shape of every input and output of a network according to the contract.

    Args:
        network: name of the network.
        sizes: values of the contract's symbols.
        compute_dtype: dtype of tensors marked "compute".
    """
    spec = NETWORKS[network]
    return {
        tensor.name: (tensor.resolve_dtype(compute_dtype), sizes.resolve(tensor.shape))
        for tensor in (*spec.inputs, *spec.outputs)
    }


def signature_differences(network: str, sizes: Sizes, compute_dtype: str, theirs: Mapping[str, Signature]) -> list[str]:
    """Compare the tensors of an engine with the contract's: names, dtypes, and shapes at the directory's sizes.

    A dimension is dynamic in the engine if and only if it is in the contract. Published files may leave open what we
    fix: that is how their authors wrote them.

    Args:
        network: name of the network.
        sizes: values of the contract's symbols.
        compute_dtype: dtype of tensors marked "compute".
        theirs: dtype and shape of every input and output of the engine.

    Returns:
        One line per tensor that is missing, unknown or different.
    """
    ours = contract_signature(network, sizes, compute_dtype)
    lines = [f"{network}: the engine lacks the tensor {name}" for name in ours if name not in theirs]
    lines += [f"{network}: the engine has a tensor {name} too many" for name in theirs if name not in ours]
    published = NETWORKS[network].published
    for name in ours.keys() & theirs.keys():
        (their_dtype, their_shape), (our_dtype, our_shape) = theirs[name], ours[name]
        if their_dtype != our_dtype or not _shapes_agree(their_shape, our_shape, published):
            lines.append(f"{network}: {name} is {_describe(theirs[name])}, expected {_describe(ours[name])}")
    return sorted(lines)


def _shapes_agree(theirs: tuple[int | str, ...], ours: tuple[int | str, ...], published: bool) -> bool:
    if len(theirs) != len(ours):
        return False
    for their, our in zip(theirs, ours, strict=True):
        if isinstance(their, str):
            if not (published or isinstance(our, str)):
                return False
        elif their != our:
            return False
    return True


def _describe(signature: Signature) -> str:
    """For example "float16 [frames, 320, 72, 128]"."""
    dtype, shape = signature
    return f"{dtype} [{', '.join(map(str, shape))}]"
