"""Configuration and tokenizer files of the toy checkpoint: those that are published, with toy widths."""

from __future__ import annotations

import json
from typing import Any

from ..checkpoints import SD15, SVD

UNET_CHANNELS = (32, 64, 128, 128)
DIFT_CHANNELS = 96

_UNET = {
    "_class_name": "UNetSpatioTemporalConditionModel",
    "_diffusers_version": "0.24.0.dev0",
    "addition_time_embed_dim": 32,
    "block_out_channels": list(UNET_CHANNELS),
    "cross_attention_dim": 48,
    "down_block_types": [*["CrossAttnDownBlockSpatioTemporal"] * 3, "DownBlockSpatioTemporal"],
    "in_channels": 8,
    "layers_per_block": 2,
    "num_attention_heads": [2, 4, 8, 8],
    "num_frames": 25,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 96,
    "sample_size": 8,
    "transformer_layers_per_block": 1,
    "up_block_types": ["UpBlockSpatioTemporal", *["CrossAttnUpBlockSpatioTemporal"] * 3],
}
_SVD_VAE = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "_diffusers_version": "0.24.0.dev0",
    "block_out_channels": [32, 64, 96, 96],
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
_CLIP_TOWER = {
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_size": 64,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-05,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
_IMAGE_ENCODER = {
    **_CLIP_TOWER,
    "architectures": ["CLIPVisionModelWithProjection"],
    "hidden_act": "gelu",
    "image_size": 224,
    "model_type": "clip_vision_model",
    "num_channels": 3,
    "patch_size": 32,
    "projection_dim": 48,
    "torch_dtype": "float16",
    "transformers_version": "4.34.0.dev0",
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
    "attention_head_dim": 4,
    "block_out_channels": [32, 64, DIFT_CHANNELS, DIFT_CHANNELS],
    "center_input_sample": False,
    "cross_attention_dim": 64,
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
    "sample_size": 8,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
_SD15_VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [32, 64, 96, 96],
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

_MERGES = ("p h", "o t", "ph ot", "phot o</w>", "o f</w>", "h u", "m a", "hu ma", "huma n</w>")
"""Enough to read "photo of a human" as four tokens; everything else is spelled letter by letter."""
_START, _END = "<|startoftext|>", "<|endoftext|>"


def _vocabulary() -> dict[str, int]:
    """Every byte (as the letter that CLIP writes it as), every byte at the end of a word, the merges, start and end."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in _MERGES)]
    return {word: number for number, word in enumerate([*words, _START, _END])}


def _special_token(content: str, **more: str) -> dict[str, Any]:
    return {**more, "content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def config_files() -> dict[str, dict[str, Any]]:
    """Parsed JSON files by their path in the published layout."""
    vocabulary = _vocabulary()
    added = {"__type": "AddedToken"}
    start, end = vocabulary[_START], vocabulary[_END]
    text_encoder = {
        **_CLIP_TOWER,
        "architectures": ["CLIPTextModel"],
        "bos_token_id": start,
        "eos_token_id": end,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "pad_token_id": 1,
        "projection_dim": 64,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
        "vocab_size": len(vocabulary),
    }
    tokenizer = {
        "add_prefix_space": False,
        "bos_token": _special_token(_START, **added),
        "do_lower_case": True,
        "eos_token": _special_token(_END, **added),
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": _END,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": _special_token(_END, **added),
    }
    special_tokens = {
        "bos_token": _special_token(_START),
        "eos_token": _special_token(_END),
        "pad_token": _END,
        "unk_token": _special_token(_END),
    }
    return {
        f"{SVD}/unet/config.json": _UNET,
        f"{SVD}/vae/config.json": _SVD_VAE,
        f"{SVD}/image_encoder/config.json": _IMAGE_ENCODER,
        f"{SVD}/scheduler/scheduler_config.json": _SVD_SCHEDULER,
        f"{SVD}/feature_extractor/preprocessor_config.json": _PREPROCESSOR,
        f"{SVD}/model_index.json": _SVD_INDEX,
        f"{SD15}/unet/config.json": _SD15_UNET,
        f"{SD15}/vae/config.json": _SD15_VAE,
        f"{SD15}/text_encoder/config.json": text_encoder,
        f"{SD15}/scheduler/scheduler_config.json": _SD15_SCHEDULER,
        f"{SD15}/model_index.json": _SD15_INDEX,
        f"{SD15}/feature_extractor/preprocessor_config.json": _PREPROCESSOR,
        f"{SD15}/tokenizer/vocab.json": vocabulary,
        f"{SD15}/tokenizer/tokenizer_config.json": tokenizer,
        f"{SD15}/tokenizer/special_tokens_map.json": special_tokens,
    }


def text_files() -> dict[str, str]:
    """Contents of all small files by their path in the published layout."""
    files = {path: json.dumps(body, indent=2, ensure_ascii=False) + "\n" for path, body in config_files().items()}
    files[f"{SD15}/tokenizer/merges.txt"] = "\n".join(["#version: 0.2", *_MERGES]) + "\n"
    return files
