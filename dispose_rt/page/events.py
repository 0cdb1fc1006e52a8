"""What a request to do something must look like. Every other one is refused before Gradio's code sees it, which would
write a traceback into the page's log for each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..system.json_reader import finite, refuse_constant

_FILE_META = {"_type": "gradio.FileData"}
_FILE_ENTRIES: Mapping[str, tuple[type, ...]] = {
    "path": (str,),
    "meta": (dict,),
    "url": (str, type(None)),
    "orig_name": (str, type(None)),
    "mime_type": (str, type(None)),
    "size": (int, type(None)),
    "is_stream": (bool,),
}
_LARGEST_INTEGER = 2**63

Fits = Callable[[Any, Any], bool]
"""Takes a component and a value, and returns whether the page's own script may send the value for it."""


class Events:
    """The events that the page's own script can ask for.

    Args:
        functions: what the page runs, by number: `gradio.Blocks.fns`.
    """

    def __init__(self, functions: Mapping[int, Any]) -> None:
        self._inputs = {
            number: [(component, _FITS[type(component).__name__]) for component in function.inputs]
            for number, function in functions.items()
            if function.fn is not None
        }

    def check(self, document: Mapping[str, Any]) -> None:
        """Check what a visitor asks for.

        Args:
            document: body of a request to join the queue or to run something at once.

        Raises:
            ValueError: there is no such event, or its values are of other types than its components have.
        """
        number, trigger, values = (document.get(name) for name in ("fn_index", "trigger_id", "data"))
        if not _is_integer(number) or number not in self._inputs:
            raise ValueError("no such event")
        if not (trigger is None or _is_integer(trigger)) or not isinstance(document.get("session_hash"), str):
            raise ValueError("no visitor, or no trigger")
        inputs = self._inputs[number]
        if not isinstance(values, list) or len(values) != len(inputs):
            raise ValueError("another number of values")
        if not all(fits(component, value) for (component, fits), value in zip(inputs, values, strict=True)):
            raise ValueError("a value of another type")


def read_document(body: bytes) -> dict[str, Any]:
    """Read a JSON object whose numbers and texts every JSON library can write again.

    Raises:
        ValueError: it is something else.
        RecursionError: it is nested too deeply.
    """
    document = json.loads(body, parse_constant=refuse_constant, parse_float=finite, parse_int=_read_integer)
    if not isinstance(document, dict):
        raise ValueError("no object")
    json.dumps(document, ensure_ascii=False).encode()  # halves of characters raise
    return document


def _read_integer(text: str) -> int:
    value = int(text)
    if not -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
        raise ValueError("too large a number")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_integer(value)


def _is_choice(component: Any, value: Any) -> bool:
    return isinstance(value, str) and value in [choice for _, choice in component.choices]


def _is_file(value: Any) -> bool:
    """Whether a value is an upload as Gradio describes one (`gradio.FileData`)."""
    if not isinstance(value, dict) or value.get("meta") != _FILE_META or "path" not in value:
        return False
    return all(type(entry) in _FILE_ENTRIES.get(name, ()) for name, entry in value.items())


_FITS: Mapping[str, Fits] = {
    "Image": lambda component, value: value is None or _is_file(value),
    "Video": lambda component, value: value is None or _is_file(value),
    "Number": lambda component, value: value is None or _is_number(value),
    "Textbox": lambda component, value: value is None or isinstance(value, str),
    "Checkbox": lambda component, value: isinstance(value, bool),
    "Dropdown": _is_choice,
    "CheckboxGroup": lambda component, value: (
        isinstance(value, list) and all(_is_choice(component, one) for one in value)
    ),
}
"""By class of component; another one would need a line here."""
