"""The Hugging Face hub as the download needs it: what a repository holds, who may read it, and bytes of a file.

Requests, redirects, retries and tokens are those of the package huggingface_hub. Its `hf_hub_download` is not used: it
begins large files anew after an interruption, and compares their sizes alone.
"""

from __future__ import annotations

import importlib.util
import io
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import DownloadError
from .errors import Request, status_of, translate
from .files import Repository

PUBLIC_HUB = "https://huggingface.co"
MAIN = "main"
_WAITS_S = (1, 4)
"""How long to wait before asking again for a file that the hub failed to serve."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        size_bytes: its size.
        digest: SHA-256 of a large file, Git's SHA-1 of a small one; hex.
    """

    size_bytes: int
    digest: str


@dataclass(frozen=True)
class Contents:
    """A repository at one commit.

    Attributes:
        revision: the commit.
        licence: as its page names it, or a remark that it names none.
        gated: files can be fetched only by those who accepted its terms.
        files: by path.
    """

    revision: str
    licence: str
    gated: bool
    files: Mapping[str, RemoteFile]


class Hub:
    """Reads repositories with one identity.

    Args:
        token: access token; None takes HF_TOKEN or what `hf auth login` stored, if any.
        endpoint: address of the hub; None takes HF_ENDPOINT or the public one.

    Raises:
        DownloadError: huggingface_hub is not installed, or the token cannot be one.
    """

    def __init__(self, token: str | None = None, endpoint: str | None = None) -> None:
        if importlib.util.find_spec("huggingface_hub") is None:
            raise DownloadError(
                "downloading needs the Python package 'huggingface_hub', which is not installed:\n"
                "  pip install 'dispose-rt[download]'"
            )
        if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token.strip()):
            raise DownloadError("the token is empty or has characters that no token has; it looks like hf_AbCd...")
        from huggingface_hub import constants, get_token

        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._token = token.strip() if token is not None else get_token()

    def page(self, repository: Repository) -> str:
        """The page for people."""
        return f"{self.endpoint}/{repository.repo}"

    def url(self, repository: Repository, path: str, revision: str = MAIN) -> str:
        """Where a file is served."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(repository.repo, path, revision=revision, endpoint=self.endpoint)

    def list_files(self, repository: Repository, revision: str | None = None) -> Contents:
        """Ask what a repository holds.

        Args:
            repository: which one.
            revision: commit, branch or tag; None for the main branch.

        Raises:
            DownloadError: it cannot be reached or read, or has no such revision.
        """
        from huggingface_hub import HfApi, constants

        with self._explain(repository, revision):
            info = HfApi(endpoint=self.endpoint, token=self._token or False).model_info(
                repository.repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        files = {}
        for one in info.siblings or ():
            digest = one.lfs.sha256 if one.lfs else one.blob_id
            if one.size is not None and digest and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest):
                files[one.rfilename] = RemoteFile(one.size, digest)
        if not info.sha or not files:
            raise DownloadError(
                f"{self.endpoint} does not tell sizes and hashes of the files of {repository.repo}. If HF_ENDPOINT is "
                "set, it has to name a server that answers as the Hugging Face hub does."
            )
        return Contents(info.sha, _find_licence(info.card_data or {}), bool(info.gated), files)

    def check_access(self, repository: Repository, path: str, revision: str) -> None:
        """Ask whether a file may be read, without reading it.

        Raises:
            DownloadError: it may not, or the hub cannot be reached; says what to do.
        """
        from huggingface_hub import get_hf_file_metadata

        with self._explain(repository, revision, path):
            url = self.url(repository, path, revision)
            get_hf_file_metadata(url, token=self._token or False, endpoint=self.endpoint, retry_on_errors=False)

    def fetch(
        self,
        repository: Repository,
        path: str,
        revision: str,
        part: Path,
        size_bytes: int,
        report: Callable[[int], None],
    ) -> None:
        """Append to a file what it lacks of a file of the hub. The contents are not checked, their size is.

        Args:
            repository: which one.
            path: the file in it.
            revision: commit.
            part: holds the beginning of the file, or does not exist yet.
            size_bytes: of the whole file.
            report: told how many bytes are there.

        Raises:
            DownloadError: it could not be fetched; what has arrived stays in `part`.
        """
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = build_hf_headers(
            token=self._token or False, library_name="dispose_rt", library_version=__version__
        ) | {"Accept-Encoding": "identity"}  # compressed answers cannot be resumed
        with self._explain(repository, revision, path), _silence():
            for wait_s in (*_WAITS_S, None):
                try:
                    with _Part(part, report) as file:
                        url = self.url(repository, path, revision)
                        http_get(url, file, resume_size=file.tell(), headers=headers, expected_size=size_bytes)
                    return
                except Exception as error:
                    if wait_s is None or status_of(error) < 500:
                        raise
                    time.sleep(wait_s)

    @contextmanager
    def _explain(self, repository: Repository, revision: str | None, path: str = "") -> Iterator[None]:
        """Turn whatever goes wrong into a DownloadError that says what to do."""
        try:
            yield
        except Exception as error:  # besides its own, the library lets through errors of five other libraries
            asked = Request(self.endpoint, repository.repo, revision or MAIN, path, bool(self._token))
            raise translate(error, asked) from error


class _Part(io.BufferedWriter):
    """A file that is appended to and tells how long it is."""

    def __init__(self, path: Path, report: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path, "a"))
        self._report = report
        self.seek(0, io.SEEK_END)

    def write(self, data: Any, /) -> int:
        count = super().write(data)
        self._report(self.tell())
        return count


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the library from drawing progress bars of its own."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _find_licence(card: Any) -> str:
    """What the head of a page names, where the licence has a name of its own, that one."""
    return str(card.get("license_name") or card.get("license") or "none named")
