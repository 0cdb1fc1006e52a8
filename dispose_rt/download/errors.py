"""Errors of a download, in words that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from ..errors import DownloadError


class GateClosedError(DownloadError):
    """The terms of a gated repository were not accepted, or no token proves that they were."""


class OfflineError(DownloadError):
    """The hub cannot be reached, or HF_HUB_OFFLINE forbids it."""


_AGAIN = "Run the same command again: files that are complete are kept."
_LATER = f"Wait some minutes. {_AGAIN}"
_OFFLINE: Mapping[str, str] = {
    "OfflineModeIsEnabled": "the hub must not be asked: HF_HUB_OFFLINE is set in the environment",
    "ConnectError": "{endpoint} cannot be reached: {reason}",
    "ProxyError": "{endpoint} cannot be reached through the proxy that the environment names: {reason}",
}
_KINDS: Mapping[str, str] = {
    **_OFFLINE,
    "GatedRepoError": """\
{repo} is gated, and {given}. None of it was fetched.
  1. Log in, read its licence and accept it: {page}
  2. Make a token that may read gated repositories: {endpoint}/settings/tokens
  3. Pass it: HF_TOKEN=hf_... in the environment, --token hf_..., or `hf auth login` once""",
    "RevisionNotFoundError": "{repo} has no revision {revision!r}; those that it has: {page}/commits",
    "DisabledRepoError": "{repo} was disabled by its owner or the hub; its page may say why: {page}",
    "EntryNotFoundError": "{repo} has no file {path!r} at revision {revision!r}: {page}/tree/{revision}",
    "TimeoutException": (
        f"{{what}}: {{endpoint}} did not answer in time. {_AGAIN}\n"
        "On slow networks allow it more seconds: HF_HUB_DOWNLOAD_TIMEOUT=60 HF_HUB_ETAG_TIMEOUT=60"
    ),
}
"""Messages by the name of an error's class or of one of its bases; httpx and httpx2 use the same names."""

_STATUSES: Mapping[int, str] = {
    403: (
        "the hub forbids reading {what} (403): {reason}\n"
        "Open {page} and see what it asks for; a fine-grained token needs the right to read public gated repositories."
    ),
    404: "there is no {what} on the hub, or it is private: {page}",
    429: f"the hub has had too many requests from here (429): {{reason}}\n{_LATER}",
}
_REFUSED_TOKEN = (
    "the hub refuses the token, or there is no {what} (401). Make a new token at {endpoint}/settings/tokens, or use "
    "none: only gated repositories need one.\nIt comes from --token, HF_TOKEN, or `hf auth login`."
)
_OUT_OF_ORDER = f"the hub is out of order: it answers {{status}} for {{what}}.\n{_LATER}"
_OTHER_STATUS = "the hub answers {status} for {what}: {reason}"


def translate(
    error: BaseException, *, endpoint: str, repo: str, revision: str, path: str, has_token: bool
) -> DownloadError:
    """Say what happened and what to do about it.

    Args:
        error: anything that huggingface_hub raised.
        endpoint: address of the hub.
        repo: owner and name of the repository that was asked for.
        revision: commit, branch or tag.
        path: file in the repository; empty where the repository itself was asked for.
        has_token: whether the request carried an access token.

    Returns:
        The error to raise in its place.
    """
    if type(error).__name__ == "LocalEntryNotFoundError" and error.__cause__ is not None:
        error = error.__cause__  # the library's wrapper says no more than that a file is not there yet
    kinds = [kind.__name__ for kind in type(error).__mro__]
    text = _choose(error, kinds, has_token).format(
        endpoint=endpoint,
        repo=repo,
        revision=revision,
        path=path,
        page=f"{endpoint}/{repo}",
        what=f"{path} of {repo}" if path else repo,
        given="the token that was given has no access to it" if has_token else "no token was given",
        status=status_of(error),
        reason=str(error).strip().partition("\n")[0] or type(error).__name__,
    )
    if "GatedRepoError" in kinds:
        return GateClosedError(text)
    return OfflineError(text) if _OFFLINE.keys() & kinds else DownloadError(text)


def _choose(error: BaseException, kinds: list[str], has_token: bool) -> str:
    status = status_of(error)
    known = next((_KINDS[kind] for kind in kinds if kind in _KINDS), "")
    if known or not status:
        return known or _choose_local(error, kinds)
    if status == 401:  # without a token, the hub also says this of what does not exist
        return _REFUSED_TOKEN if has_token else _STATUSES[404]
    return _STATUSES.get(status, _OUT_OF_ORDER if status >= 500 else _OTHER_STATUS)


def _choose_local(error: BaseException, kinds: list[str]) -> str:
    """Errors that came without a response: the transfer, the disk, and the rest."""
    if "HTTPError" in kinds:  # base class of the HTTP library's errors
        return f"{{what}}: the transfer broke off: {{reason}}\n{_AGAIN}"
    if not isinstance(error, OSError):
        return f"{{what}} cannot be fetched: {type(error).__name__}: {{reason}}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{{what}}: the disk is full, or your quota is used up. Free some room. {_AGAIN}"
    # where sizes differ, the library raises an OSError without a number
    return "{what} cannot be written: {reason}" if error.errno else f"{{what}} is not whole: {{reason}}\n{_AGAIN}"


def status_of(error: BaseException) -> int:
    """HTTP status of the response that an error carries; 0 where it carries none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))
