"""DisPose's point adapter without its grids: the embedding of a joint becomes one feature per level of the ControlNet.

The reference runs these perceptrons over every cell of a grid that is almost empty; here they see only the joints.
A kernel of the runtime then places the features in the grids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dispose_rt.contract import POSE_LEVELS, Sizes

from ..checkpoints import load_strict

_HIDDEN = 128


class _LevelEncoder(nn.Module):
    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(embedding, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, channels))

    def forward(self, embeddings: Tensor) -> Tensor:
        features: Tensor = self.mlp(embeddings)
        return features


class PointEncoder(nn.Module):
    """One perceptron with one hidden layer per level."""

    def __init__(self, embedding: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.model_list = nn.ModuleList(_LevelEncoder(embedding, width) for width in channels)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        """Encode joints.

        Args:
            embeddings: float32 [points, dift], the mean DIFT feature of the joints that share a cell.

        Returns:
            Per level [points, c_i] in the compute dtype.
        """
        embeddings = embeddings.to(next(self.parameters()).dtype)
        return tuple(level(embeddings) for level in self.model_list)


def build_point_encoder(tensors: Mapping[str, Tensor], source: str = "DisPose.pth") -> PointEncoder:
    """Build the point encoder and load its published weights; its widths are read from them.

    Args:
        tensors: the tensors of `DisPose.pth` whose names begin with `point_adapter.`, that prefix removed.
        source: file that they come from, for the error message.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape; every problem is listed.
    """
    first = tensors.get("model_list.0.mlp.0.weight")
    last = [tensors.get(f"model_list.{level}.mlp.2.bias") for level in range(POSE_LEVELS)]
    widths = [width if bias is None else len(bias) for bias, width in zip(last, Sizes.channels, strict=True)]
    with torch.device("meta"):
        encoder = PointEncoder(Sizes.dift if first is None else first.shape[-1], widths)
    load_strict(encoder, tensors, source)
    return encoder.eval()
