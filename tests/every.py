"""One test of many items, which reports every item that fails."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Every:
    """Collects what goes wrong with each item.

    with every_item() as every:
        for item in items:
            with every(item):
                assert item ...
    """

    def __init__(self) -> None:
        self.checked = 0
        self.faults: list[str] = []

    @contextmanager
    def __call__(self, *item: object) -> Iterator[None]:
        """Check one item; an assertion or an error in it is reported at the end, with the item's name."""
        self.checked += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            text = str(error).strip()
            self.faults.append(f"{', '.join(map(str, item))}: {type(error).__name__}: {text[:2000]}")


@contextmanager
def every_item() -> Iterator[Every]:
    """Fail in the end if an item failed, or if there was none."""
    every = Every()
    yield every
    assert every.checked, "no item was checked"
    if every.faults:
        listed = "\n\n".join(every.faults)
        pytest.fail(f"{len(every.faults)} of {every.checked} items fail:\n{listed}", pytrace=False)


def each(**columns: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test with every combination of arguments, as one case that reports every combination that fails.

    Like `pytest.mark.parametrize`, for many combinations of one check that share their fixtures. A column whose name
    holds several names, joined by two underscores, has tuples.
    """
    rows = [dict(_spread(columns, values)) for values in itertools.product(*columns.values())]

    def wrap(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            with every_item() as every:
                for row in rows:
                    with every(*(_label(value) for value in row.values())):
                        test(**fixtures, **row)

        signature = inspect.signature(test)
        left = [one for name, one in signature.parameters.items() if name not in rows[0]]
        run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]  # fixtures to hand in
        return run

    return wrap


def _label(value: Any) -> object:
    """Return a short name of an item: a function's name, an array's dtype and shape, anything else as it is."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {list(value.shape)}"
    return getattr(value, "name", getattr(value, "__name__", value))


def _spread(columns: dict[str, Iterable[Any]], values: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    for name, value in zip(columns, values, strict=True):
        names = name.split("__")
        yield from zip(names, value, strict=True) if len(names) > 1 else [(name, value)]
