"""The Hugging Face hub as a download needs it: what a repository holds, who may read it, and its files.

The package huggingface_hub does the work; here its errors become messages that say what to do.
"""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..errors import DownloadError
from .errors import status_of, translate
from .files import Repository

MAIN = "main"
_WAITS_S = (1, 4)
"""Pauses before a file that the hub failed to serve is asked for again, in seconds."""


class RemoteFile(NamedTuple):
    """A file of a repository: its size, and SHA-256 of a large file or Git's SHA-1 of a small one, hex."""

    size_bytes: int
    digest: str


class Contents(NamedTuple):
    """A repository at one commit: the licence that its page names, whether it is gated, and its files by path."""

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
        from huggingface_hub import HfApi, constants, get_token

        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        # False keeps the library from looking for a token itself
        self._token = (token.strip() if token is not None else get_token()) or False
        self._api = HfApi(self.endpoint, self._token, library_name="dispose_rt", library_version=__version__)

    def url(self, repository: Repository, path: str, revision: str = MAIN) -> str:
        """Address of a file."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(repository.repo, path, revision=revision, endpoint=self.endpoint)

    def list_files(self, repository: Repository, revision: str | None = None) -> Contents:
        """Ask what a repository holds; None takes its main branch."""
        from huggingface_hub import constants

        with self._explain(repository, revision or MAIN):
            info = self._api.model_info(
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
        card: Any = info.card_data or {}
        licence = str(card.get("license_name") or card.get("license") or "none named")
        return Contents(info.sha, licence, bool(info.gated), files)

    def check_access(self, repository: Repository, path: str, revision: str) -> None:
        """Raise a DownloadError, which says what to do, if a file may not be read. The file itself is not fetched."""
        with self._explain(repository, revision, path):
            self._api.get_hf_file_metadata(url=self.url(repository, path, revision))

    def fetch(
        self, repository: Repository, path: str, revision: str, folder: Path, report: Callable[[int], None]
    ) -> Path:
        """Fetch a file. Its size is checked, its contents are not.

        Args:
            repository: where it is.
            path: the file in the repository.
            revision: commit.
            folder: gets the file at the same path, and bookkeeping of the library.
            report: called with the number of bytes that have arrived.

        Returns:
            Where the file is.

        Raises:
            DownloadError: it could not be fetched; nothing is left of it.
        """
        os.environ.setdefault("HF_XET_CHUNK_CACHE_SIZE_BYTES", "0")  # no second copy in ~/.cache/huggingface
        download = partial(
            self._api.hf_hub_download,
            *(repository.repo, path),
            revision=revision,
            local_dir=folder,
            tqdm_class=_make_counter(report),
        )
        with self._explain(repository, revision, path):
            for wait_s in _WAITS_S:
                try:
                    return Path(download())
                except Exception as error:
                    if status_of(error) < 500:
                        raise
                    time.sleep(wait_s)
            return Path(download())

    @contextmanager
    def _explain(self, repository: Repository, revision: str, path: str = "") -> Iterator[None]:
        """Turn whatever goes wrong into a DownloadError that says what to do."""
        try:
            yield
        except Exception as error:  # besides its own, the library lets errors of five other packages through
            asked = {"endpoint": self.endpoint, "repo": repository.repo, "revision": revision, "path": path}
            raise translate(error, has_token=bool(self._token), **asked) from error


def _make_counter(report: Callable[[int], None]) -> Any:
    """Make a class of progress bars that draw nothing and report how many bytes of a file have arrived."""
    from tqdm import tqdm

    class Counter(tqdm):  # type: ignore[misc]  # the package has no types
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            report(self.n)

        def update_transfer(self, n: float) -> None:
            """Ignore compressed bytes from the network: the library's Xet client counts those of the file as well."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            """Ignore the network's speed."""

    return Counter
