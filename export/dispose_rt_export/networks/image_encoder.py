"""CLIP image encoder of Stable Video Diffusion: the reference image to one embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..checkpoints import Weights, load_strict

_POSITION_IDS = "vision_model.embeddings.position_ids"


class ImageEncoder(nn.Module):
    """Projected CLIP embedding of an image, as a sequence of one token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed an image.

        Args:
            pixel_values: float32 [1, 3, 224, 224], normalised with CLIP's mean and standard deviation.

        Returns:
            Embedding, float32 [1, 1, embed].
        """
        dtype = next(self.model.parameters()).dtype
        embeds: Tensor = self.model(pixel_values.to(dtype)).image_embeds
        return embeds.float().unsqueeze(1)


def build_image_encoder(weights: Weights) -> ImageEncoder:
    """Build the network in float32 evaluation mode from `stable-video-diffusion-img2vid-xt-1-1/image_encoder`.

    Raises:
        CheckpointError: the published file does not hold exactly the tensors of the network.
    """
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(dict(weights.configs["image_encoder"])))
    load_strict(model, weights.tensors("image_encoder"), weights.source("image_encoder"), unused={_POSITION_IDS})
    embeddings = model.vision_model.embeddings
    # never read from a file by this version of transformers: older files hold 0, 1, 2, ... and newer ones nothing
    ids = torch.arange(embeddings.num_positions, device=embeddings.position_embedding.weight.device)
    embeddings.position_ids = ids.unsqueeze(0)
    return ImageEncoder(model).eval()
