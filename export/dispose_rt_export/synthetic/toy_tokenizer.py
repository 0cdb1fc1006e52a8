"""Files of the toy checkpoint's tokenizer: CLIP's, with hardly any merges."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

MERGES = ("p h", "o t", "ph ot", "phot o</w>", "o f</w>", "h u", "m a", "hu ma", "huma n</w>")
"""Enough to read "photo of a human" as four tokens; everything else is spelled letter by letter."""
START, END = "<|startoftext|>", "<|endoftext|>"


@cache
def read_vocabulary() -> dict[str, int]:
    """Return token numbers: all bytes in CLIP's letters, all bytes at the end of a word, the merges, start and end."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in MERGES)]
    return {word: number for number, word in enumerate([*words, START, END])}


def _special_token(content: str, **more: str) -> dict[str, Any]:
    return {**more, "content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def tokenizer_files() -> dict[str, str]:
    """Return the contents of the tokenizer's files by name."""
    added = {"__type": "AddedToken"}
    bodies = {
        "vocab.json": read_vocabulary(),
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "bos_token": _special_token(START, **added),
            "do_lower_case": True,
            "eos_token": _special_token(END, **added),
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": END,
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": _special_token(END, **added),
        },
        "special_tokens_map.json": {
            "bos_token": _special_token(START),
            "eos_token": _special_token(END),
            "pad_token": END,
            "unk_token": _special_token(END),
        },
    }
    files = {name: json.dumps(body, indent=2, ensure_ascii=False) + "\n" for name, body in bodies.items()}
    return files | {"merges.txt": "\n".join(["#version: 0.2", *MERGES]) + "\n"}
