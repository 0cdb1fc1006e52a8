"""One test of many items, which reports every item that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
