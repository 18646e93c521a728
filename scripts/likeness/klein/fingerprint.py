"""What a model's files are, as one digest: the hub's commit, the manifest's digest, or the sha256 of the files.

Hashing 18 GB takes a minute, so a file's sha256 is remembered by (path, size, modification time) in a small JSON file;
losing that file costs time only. Config files count too: a changed scheduler or text config changes every result.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from likeness.errors import UserError
from likeness.store import write_atomically

MANIFEST = "manifest.json"
_COUNTED = {".safetensors", ".json", ".txt", ".jinja", ".model"}
_BLOCK = 1 << 22


def sha256_of_file(path: Path) -> str:
    """Hash a file's bytes; returns 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def folder_fingerprint(folder: Path, cache: Path | None = None) -> str:
    """Fingerprint a model folder: 64 hex digits that depend on names and bytes of its files and not on where it lies.

    With a `manifest.json` ({"files": {name: sha256}}) its digest is taken and the files are trusted; UserError where a
    listed file is absent. `cache` is the JSON file that remembers digests (default: a file in the temporary folder).
    """
    manifest = folder / MANIFEST
    if manifest.is_file():
        return _digest_of(_manifest_files(manifest))
    cache = cache or default_cache()
    known = _read_cache(cache)
    before = dict(known)
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in _COUNTED and path.is_file():
            files[path.relative_to(folder).as_posix()] = _remembered(path, known)
    if known != before:
        _write_cache(cache, known)
    return _digest_of(files)


def default_cache() -> Path:
    """Where digests are remembered when the caller names no file."""
    return Path(tempfile.gettempdir()) / f"likeness-fingerprints-{os.getuid()}.json"


def _manifest_files(manifest: Path) -> dict[str, str]:
    try:
        files = json.loads(manifest.read_text("utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{manifest} must hold {{'files': {{name: sha256}}}}. Mend or remove it.") from None
    absent = [name for name in sorted(files) if not (manifest.parent / name).is_file()]
    if absent:
        raise UserError(
            f"{manifest} lists {absent[0]!r}, which is not in {manifest.parent}. Make or download the model again."
        )
    return files


def _digest_of(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _remembered(path: Path, known: dict[str, str]) -> str:
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    if key not in known:
        known[key] = sha256_of_file(path)
    return known[key]


def _read_cache(cache: Path) -> dict[str, str]:
    try:
        known = json.loads(cache.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(cache: Path, known: dict[str, str]) -> None:
    write_atomically(cache, json.dumps(known, sort_keys=True).encode())
