"""Files of the synthetic checkpoints' tokenizers: CLIP's, with hardly any merges or with made-up ones."""

from __future__ import annotations

import json
from functools import cache
from itertools import islice
from typing import Any

MERGES = ("p h", "o t", "ph ot", "phot o</w>", "o f</w>", "h u", "m a", "hu ma", "huma n</w>")
"""Enough to read "photo of a human" as four tokens; everything else is spelled letter by letter."""
START, END = "<|startoftext|>", "<|endoftext|>"


PUBLISHED_MERGES = 48894
"""Merges of the published tokenizer: with all bytes, start and end, its vocabulary has 49408 words."""


@cache
def read_vocabulary(made_up: int = 0) -> dict[str, int]:
    """Return token numbers: all bytes in CLIP's letters, all bytes at the end of a word, the merges, start and end."""
    letters = _letters()
    merged = (merge.replace(" ", "") for merge in _all_merges(made_up))
    words = [*letters, *(f"{letter}</w>" for letter in letters), *merged]
    return {word: number for number, word in enumerate([*words, START, END])}


def _letters() -> list[str]:
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]


def _all_merges(made_up: int) -> list[str]:
    """Return MERGES, and after them that many pairs of letters."""
    pairs = (f"{first} {second}" for first in _letters() for second in _letters())
    return [*MERGES, *islice((pair for pair in pairs if pair not in MERGES), made_up)]


def _special_token(content: str, **more: str) -> dict[str, Any]:
    return {**more, "content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def tokenizer_files(made_up: int = 0) -> dict[str, str]:
    """Return the contents of the tokenizer's files by name.

    Args:
        made_up: number of merges beyond MERGES.
    """
    added = {"__type": "AddedToken"}
    bodies = {
        "vocab.json": read_vocabulary(made_up),
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
    return files | {"merges.txt": "\n".join(["#version: 0.2", *_all_merges(made_up)]) + "\n"}
