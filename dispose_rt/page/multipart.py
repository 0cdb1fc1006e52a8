"""A look at the parts of an upload while it arrives. Importing this imports python-multipart, which Gradio needs."""

from __future__ import annotations

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

MOST_FILES = 10


class PartsCheck:
    """Refuses what the page never sends: parts that are no file, which Gradio would collect in memory; and many files.

    Args:
        content_type: header of the upload.

    Raises:
        HTTPException: it is no multipart form.
    """

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise HTTPException(400, "An upload must be a form of files.")
        self._name = b""
        self._value = b""
        self._disposition = b""
        self._files = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._take_name,
                "on_header_value": self._take_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes.

        Raises:
            HTTPException: a part is refused, or is none.
        """
        try:
            self._parser.write(chunk)
        except MultipartParseError:
            raise HTTPException(400, "The upload cannot be read.") from None

    def _begin_part(self) -> None:
        self._disposition = b""

    def _take_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _end_headers(self) -> None:
        self._files += 1
        if b"filename" not in parse_options_header(self._disposition)[1] or self._files > MOST_FILES:
            raise HTTPException(400, f"An upload must hold files alone, at most {MOST_FILES}.")
