"""Configurations of the published checkpoints: the toy ones with the published widths in their places."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..checkpoints import CONFIG_FILES, Config
from .toy_configs import config_files

SCALES = ("full", "toy")
"""Widths that configurations exist for: the published ones, and those of the toy checkpoint."""

_PUBLISHED_WIDTHS: Mapping[str, Config] = {
    "svd_unet": {
        "addition_time_embed_dim": 256,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1024,
        "num_attention_heads": [5, 10, 20, 20],
        "projection_class_embeddings_input_dim": 768,
        "sample_size": 96,
    },
    "svd_vae": {"block_out_channels": [128, 256, 512, 512]},
    "image_encoder": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "projection_dim": 1024,
    },
    "sd15_unet": {
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768,
        "sample_size": 64,
    },
    "sd15_vae": {"block_out_channels": [128, 256, 512, 512]},
    "sd15_text_encoder": {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "vocab_size": 49408,
    },
}


def scale_configs(scale: str) -> Mapping[str, Config]:
    """Parsed configuration files by their names in `checkpoints.CONFIG_FILES`, at one of SCALES."""
    toy = config_files()
    widths = _PUBLISHED_WIDTHS if scale == "full" else {}
    configs = {name: {**toy[file.paths[0]], **widths.get(name, {})} for name, file in CONFIG_FILES.items()}
    return MappingProxyType(configs)
