"""Configuration files of the published checkpoints, and those of the toy checkpoint: the published ones, narrower."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..checkpoints import CONFIG_FILES, SD15, SVD, Config
from .toy_tokenizer import END, MERGES, PUBLISHED_MERGES, START, read_vocabulary, tokenizer_files

SCALES = ("full", "toy")
"""The published widths, and those of the toy checkpoint."""

_SVD_UNET = {
    "_class_name": "UNetSpatioTemporalConditionModel",
    "_diffusers_version": "0.24.0.dev0",
    "addition_time_embed_dim": 256,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "down_block_types": [*["CrossAttnDownBlockSpatioTemporal"] * 3, "DownBlockSpatioTemporal"],
    "in_channels": 8,
    "layers_per_block": 2,
    "num_attention_heads": [5, 10, 20, 20],
    "num_frames": 25,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 768,
    "sample_size": 96,
    "transformer_layers_per_block": 1,
    "up_block_types": ["UpBlockSpatioTemporal", *["CrossAttnUpBlockSpatioTemporal"] * 3],
}
_SVD_VAE = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "_diffusers_version": "0.24.0.dev0",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 768,
    "scaling_factor": 0.18215,
}
_SVD_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.24.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_karras_sigmas": True,
}


def _clip_tower(hidden_size: int, intermediate_size: int, heads: int, layers: int) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_size": hidden_size,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": intermediate_size,
        "layer_norm_eps": 1e-05,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
    }


_IMAGE_ENCODER = {
    **_clip_tower(1280, 5120, heads=16, layers=32),
    "architectures": ["CLIPVisionModelWithProjection"],
    "hidden_act": "gelu",
    "image_size": 224,
    "model_type": "clip_vision_model",
    "num_channels": 3,
    "patch_size": 14,
    "projection_dim": 1024,
    "torch_dtype": "float16",
    "transformers_version": "4.34.0.dev0",
}
_SD15_TEXT_ENCODER = {
    **_clip_tower(768, 3072, heads=12, layers=12),
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}
_PREPROCESSOR = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}
_SVD_INDEX = {
    "_class_name": "StableVideoDiffusionPipeline",
    "_diffusers_version": "0.24.0.dev0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}
_SD15_UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
_SD15_VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_SD15_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
_SD15_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

_PUBLISHED: Mapping[str, Config] = {
    "svd_unet": _SVD_UNET,
    "svd_vae": _SVD_VAE,
    "image_encoder": _IMAGE_ENCODER,
    "svd_scheduler": _SVD_SCHEDULER,
    "sd15_unet": _SD15_UNET,
    "sd15_vae": _SD15_VAE,
    "sd15_text_encoder": _SD15_TEXT_ENCODER,
    "sd15_scheduler": _SD15_SCHEDULER,
}
"""By the names of `checkpoints.CONFIG_FILES`."""

_TOY_WIDTHS: Mapping[str, Config] = {
    "svd_unet": {
        "addition_time_embed_dim": 32,
        "block_out_channels": [32, 64, 128, 128],
        "cross_attention_dim": 48,
        "num_attention_heads": [2, 4, 8, 8],
        "projection_class_embeddings_input_dim": 96,
        "sample_size": 8,
    },
    "svd_vae": {"block_out_channels": [32, 64, 96, 96]},
    "image_encoder": {**_clip_tower(64, 128, heads=4, layers=2), "patch_size": 32, "projection_dim": 48},
    "sd15_unet": {
        "attention_head_dim": 4,
        "block_out_channels": [32, 64, 96, 96],
        "cross_attention_dim": 64,
        "sample_size": 8,
    },
    "sd15_vae": {"block_out_channels": [32, 64, 96, 96]},
    "sd15_text_encoder": {
        **_clip_tower(64, 128, heads=4, layers=2),
        "bos_token_id": read_vocabulary()[START],
        "eos_token_id": read_vocabulary()[END],
        "projection_dim": 64,
        "vocab_size": len(read_vocabulary()),
    },
}
"""What the toy checkpoint has in place of the published values."""


def configs_of(scale: str) -> Mapping[str, Config]:
    """Return the parsed configuration files at one of SCALES, by their names in `checkpoints.CONFIG_FILES`."""
    widths = _TOY_WIDTHS if scale == "toy" else {}
    return MappingProxyType({name: {**_PUBLISHED[name], **widths.get(name, {})} for name in CONFIG_FILES})


def small_files(scale: str) -> dict[str, str]:
    """Return the contents of all small files at one of SCALES, by their path in the published layout."""
    bodies = {
        **{CONFIG_FILES[name].paths[0]: config for name, config in configs_of(scale).items()},
        f"{SVD}/feature_extractor/preprocessor_config.json": _PREPROCESSOR,
        f"{SVD}/model_index.json": _SVD_INDEX,
        f"{SD15}/feature_extractor/preprocessor_config.json": _PREPROCESSOR,
        f"{SD15}/model_index.json": _SD15_INDEX,
    }
    written = {path: json.dumps(body, indent=2, ensure_ascii=False) + "\n" for path, body in bodies.items()}
    made_up = PUBLISHED_MERGES - len(MERGES) if scale == "full" else 0
    return written | {f"{SD15}/tokenizer/{name}": text for name, text in tokenizer_files(made_up).items()}
