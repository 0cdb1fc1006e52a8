"""The folder of `DebugPictures`: picture files by stage and number, and which of them are on the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import pictures
from ..errors import OutputError
from ..system.files import save_bytes
from ..types import U8
from . import index_page
from .sections import STAGES

PAGE_NAME = "index.html"
PICTURES_NAME = "pictures"

_OURS = re.compile(rf"({'|'.join(STAGES)})_(\d{{6,}}|legend)\.(png|jpg)")


class PictureFolder:
    """Writes pictures and their page.

    Args:
        folder: created where missing. Pictures that an earlier run left in it are removed; its page says that they are
            ours.

    Raises:
        OutputError: the folder cannot be written, or holds an index.html or pictures that are not ours.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._figures: dict[str, dict[int, index_page.Figure]] = {stage: {} for stage in STAGES}
        self._legends: dict[str, index_page.Figure] = {}
        self._landscape: set[str] = set()
        page = folder / PAGE_NAME
        try:
            is_ours = page.exists() and index_page.MARK.encode() in page.read_bytes()
            if page.exists() and not is_ours:
                raise OutputError(f"{page} is not a page of debug pictures; pass an empty or a new folder")
            for old in (folder / PICTURES_NAME).glob("*"):
                if not _OURS.fullmatch(old.name):
                    continue
                if not is_ours:  # the page is written before any picture
                    raise OutputError(
                        f"{old} is no debug picture of ours and would be lost; pass an empty or a new folder"
                    )
                old.unlink()
        except OSError as error:
            raise OutputError(f"{folder} cannot be used: {error}; pass a writable folder") from error
        self.write_page({}, {}, "It is still going on, or it was killed.", {})

    def show(self, stage: str, number: int, caption: str, image: U8, *, photo: bool = False) -> None:
        """Write a picture and put it on the page.

        Args:
            stage: a key of `debug_sections.STAGES`.
            number: 0 or more; orders the stage's pictures.
            caption: of the picture.
            image: uint8 [H, W, 3], RGB.
            photo: write a JPEG and not a PNG.

        Raises:
            OutputError: it cannot be written.
        """
        self._figures[stage][number] = index_page.Figure((self._write(f"{stage}_{number:06d}", image, photo),), caption)
        if image.shape[1] > image.shape[0]:
            self._landscape.add(stage)

    def show_legend(self, stage: str, caption: str, image: U8) -> None:
        """Write a picture that stands before all others of its stage."""
        self._legends[stage] = index_page.Figure((self._write(f"{stage}_legend", image, False),), caption)

    def put_beside(self, stage: str, number: int, other: str) -> None:
        """Show the picture of another stage, where there is one, on the left of the one with the same number."""
        figure, left = self._figures[stage][number], self._figures[other].get(number)
        if left is not None:
            self._figures[stage][number] = index_page.Figure((*left.files, *figure.files), figure.caption)

    def numbers(self, stage: str) -> list[int]:
        """Which pictures a stage has."""
        return sorted(self._figures[stage])

    def keep_only(self, stage: str, wanted: Iterable[int]) -> None:
        """Remove a stage's other pictures.

        Raises:
            OutputError: one cannot be removed.
        """
        kept = set(wanted)
        for number in [one for one in self._figures[stage] if one not in kept]:
            for file in self._figures[stage].pop(number).files:
                try:
                    (self._folder / file).unlink(missing_ok=True)
                except OSError as error:
                    raise OutputError(f"{self._folder / file} cannot be removed: {error}") from error

    def write_page(
        self,
        summary: Mapping[str, object],
        timings: Mapping[str, float],
        error: str | None,
        tables: Mapping[str, list[list[str]]],
    ) -> Path:
        """Write the page about all pictures that are there.

        Raises:
            OutputError: it cannot be written.
        """
        sections = [
            index_page.Section(
                anchor=stage,
                title=text.title,
                what=text.what,
                look=text.look,
                figures=[self._figures[stage][number] for number in self.numbers(stage)],
                layout=text.layout or ("few" if stage in self._landscape else ""),
                legend=self._legends.get(stage),
                table=tables.get(stage, ()),
            )
            for stage, text in STAGES.items()
        ]
        page = index_page.render_page(sections, summary, timings, error)
        return save_bytes(self._folder / PAGE_NAME, page.encode())

    def _write(self, stem: str, image: U8, photo: bool) -> str:
        save, suffix = (pictures.save_jpeg, "jpg") if photo else (pictures.save_png, "png")
        name = f"{PICTURES_NAME}/{stem}.{suffix}"
        save(self._folder / name, image)
        return name
