"""Which engine directories may run: those that carry native code must be signed by a key that this user trusts.

AOTInductor packages are shared libraries, and TensorRT plans can carry plugins: loading one runs whatever it holds. A
directory with such files is therefore a program. Building one signs its manifest, which holds the SHA-256 of every
file, with the user's own Ed25519 key; ONNX files hold no code and need no signature.

Keys lie in `$XDG_CONFIG_HOME/dispose-rt` (`~/.config/dispose-rt`): `signing-key` is this user's own, whose signatures
are always trusted; `trusted.json` lists the keys and the single directories that the user chose to trust.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import secrets
import shlex
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, ManifestError
from ..system.files import config_folder, save_bytes
from ..system.json_reader import read_json
from .manifest import Manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE_FILE_NAME = "signature.json"
TRUST_VARIABLE = "DISPOSE_RT_TRUST"
TRUST_EVERYTHING = "all"

_OWN_KEY, _LIST = "signing-key", "trusted.json"
_PREFIX = "dispose-rt-key-"
_KEY = re.compile(rf"{_PREFIX}[A-Za-z0-9_-]{{43}}")
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_PURPOSE = b"dispose-rt engine directory, version 1\n"
"""First part of every signed message: a signature counts for nothing else."""


@dataclass(frozen=True)
class Trust:
    """What a user trusts besides the own key.

    Attributes:
        keys: public keys as text; see `is_key`.
        directories: checksums of manifests -> the folders they lay in when they were trusted.
    """

    keys: tuple[str, ...]
    directories: Mapping[str, str]


def carries_code(manifest: Manifest) -> bool:
    """Return whether loading a directory's engines can run native code that it holds."""
    return manifest.backend != "onnxruntime" or any(one.backend != "onnxruntime" for one in manifest.networks.values())


def is_key(text: str) -> bool:
    """Return whether a text is a public key: "dispose-rt-key-" and 43 characters of base64."""
    return _KEY.fullmatch(text) is not None


def own_key() -> str | None:
    """Return the public key of this user as text, or None where the user never signed anything.

    Raises:
        InputError: the key file is damaged, or others may read or write it.
    """
    private = _read_private_key()
    return None if private is None else _public_text(private)


def read_trust() -> Trust:
    """Read the keys and directories that the user trusts: `trusted.json`, and the keys in DISPOSE_RT_TRUST.

    Raises:
        InputError: the file is damaged, or the variable holds something other than keys.
    """
    stored = _read_list()
    return replace(stored, keys=tuple(dict.fromkeys([*stored.keys, *_keys_of_environment()])))


def trust_key(key: str) -> None:
    """Trust every directory that a key signs, from now on.

    Raises:
        InputError: it is no key, or the list cannot be written.
    """
    if not is_key(key):
        raise InputError(f"{key!r} is no key; keys look like {_PREFIX}... and are printed by `dispose-rt trust`")
    trust = _read_list()
    _write_list(replace(trust, keys=tuple(dict.fromkeys([*trust.keys, key]))))


def trust_directory(manifest: Manifest) -> None:
    """Trust one directory, as it is now.

    Raises:
        InputError: the list cannot be written.
    """
    trust = _read_list()
    _write_list(replace(trust, directories={**trust.directories, _checksum(manifest): str(manifest.folder.absolute())}))


def forget_key(key: str) -> bool:
    """Trust a key no more; return whether it was in the list."""
    trust = _read_list()
    _write_list(replace(trust, keys=tuple(one for one in trust.keys if one != key)))
    return key in trust.keys


def forget_directory(manifest: Manifest) -> bool:
    """Trust a directory no more; return whether it was in the list."""
    trust, checksum = _read_list(), _checksum(manifest)
    _write_list(replace(trust, directories={one: at for one, at in trust.directories.items() if one != checksum}))
    return checksum in trust.directories


def sign_directory(manifest: Manifest) -> None:
    """Sign a directory with the user's own key, which is made the first time.

    Args:
        manifest: as written; its checksum covers the SHA-256 of every file.

    Raises:
        InputError: the key can be neither read nor made.
        OSError: the signature cannot be written.
    """
    private = _read_private_key() or _make_private_key()
    signature = private.sign(_message(manifest))
    body = {"key": _public_text(private), "signature": base64.b64encode(signature).decode()}
    save_bytes(manifest.folder / SIGNATURE_FILE_NAME, f"{json.dumps(body, indent=1)}\n".encode())


def signer_of(manifest: Manifest) -> str | None:
    """Return the key whose valid signature lies in a directory, or None."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        body = read_json(manifest.folder / SIGNATURE_FILE_NAME)
    except (OSError, ValueError):
        return None
    if not isinstance(body, dict) or not all(isinstance(body.get(name), str) for name in ("key", "signature")):
        return None
    if not is_key(body["key"]):
        return None
    with suppress(InvalidSignature, binascii.Error, ValueError):
        public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(body["key"].removeprefix(_PREFIX) + "="))
        public.verify(base64.b64decode(body["signature"], validate=True), _message(manifest))
        return str(body["key"])
    return None


def find_distrust(manifest: Manifest) -> tuple[str, str] | None:
    """Return why a directory may not run, and the remedy; None where it may.

    Raises:
        InputError: the user's own key or list is damaged.
    """
    if manifest.trusted or not carries_code(manifest) or os.environ.get(TRUST_VARIABLE) == TRUST_EVERYTHING:
        return None
    trust = read_trust()
    signer = signer_of(manifest)
    if _checksum(manifest) in trust.directories or (signer is not None and signer in (*trust.keys, own_key())):
        return None
    command = shlex.join(["dispose-rt", "trust", str(manifest.folder)])
    whose = "it is not signed" if signer is None else f"it is signed by {signer}, which you do not trust"
    text = f"its {manifest.backend} engines are native code that would run with your rights, and {whose}"
    remedy = f"If you know where it comes from: {command}"
    if signer is not None:
        remedy += f"; or, to trust all that this key signs: dispose-rt trust {signer}"
    return text, remedy


def require_trust(manifest: Manifest) -> None:
    """Refuse a directory whose native code this user does not trust.

    Raises:
        ManifestError: it is refused.
        InputError: the user's own key or list is damaged.
    """
    if distrust := find_distrust(manifest):
        text, remedy = distrust
        raise ManifestError(f"the engine directory {manifest.folder} may not run: {text}", remedy=remedy)


def memory_secret() -> bytes | None:
    """Return what only this user knows, to seal what is remembered of a directory with code; None without a key."""
    private = _read_private_key()
    return None if private is None else hashlib.sha256(_PURPOSE + private.private_bytes_raw()).digest()


def _checksum(manifest: Manifest) -> str:
    return str(manifest.to_json()["checksum"])


def _message(manifest: Manifest) -> bytes:
    return _PURPOSE + _checksum(manifest).encode()


def _keys_of_environment() -> list[str]:
    words = [word.strip() for word in os.environ.get(TRUST_VARIABLE, "").split(",")]
    keys = [word for word in words if word and word != TRUST_EVERYTHING]
    if wrong := [word for word in keys if not is_key(word)]:
        raise InputError(f"{TRUST_VARIABLE} holds {wrong[0]!r}; set it to keys, separated by commas, or to all")
    return keys


def _read_list() -> Trust:
    """Read `trusted.json`."""
    path = config_folder() / _LIST
    try:
        body = read_json(path)
    except FileNotFoundError:
        return Trust((), {})
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}. Mend it, or remove it and trust again") from error
    match body:
        case {"keys": list(keys), "directories": dict(directories)}:
            if all(isinstance(key, str) and is_key(key) for key in keys) and all(map(_CHECKSUM.fullmatch, directories)):
                return Trust(tuple(keys), directories)
    raise InputError(f"{path} is not a list of keys and directories. Remove it, and trust again")


def _write_list(trust: Trust) -> None:
    path = _own_folder() / _LIST
    body = {"keys": list(trust.keys), "directories": dict(trust.directories)}
    save_bytes(path, f"{json.dumps(body, indent=1)}\n".encode())


def _own_folder() -> Path:
    folder = config_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error}. Set XDG_CONFIG_HOME to a folder of yours") from error
    return folder


def _public_text(private: Ed25519PrivateKey) -> str:
    raw = private.public_key().public_bytes_raw()
    return _PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _read_private_key() -> Ed25519PrivateKey | None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = config_folder() / _OWN_KEY
    try:
        status, raw = path.stat(), path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"your signing key {path} cannot be read: {error}") from error
    if os.name == "posix" and (stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.geteuid()):
        command = shlex.join(["chmod", "600", str(path)])
        raise InputError(f"your signing key {path} is open to others; make it yours alone: {command}")
    if len(raw) != _KEY_BYTES:
        raise InputError(f"your signing key {path} is damaged. Remove it; builds then sign with a new one")
    return Ed25519PrivateKey.from_private_bytes(raw)


def _make_private_key() -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path, private = _own_folder() / _OWN_KEY, Ed25519PrivateKey.generate()
    part = path.with_name(f".{_OWN_KEY}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private.private_bytes_raw())
        try:
            with suppress(FileExistsError):  # another build was first, and its key counts
                os.link(part, path)
        finally:
            part.unlink()
    except OSError as error:
        raise InputError(f"your signing key {path} cannot be written: {error}") from error
    made = _read_private_key()
    assert made is not None
    return made
