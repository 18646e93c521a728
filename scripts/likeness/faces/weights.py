"""Where weights lie and what their bytes are, for the models of the photo stages.

A fingerprint is the configured sha256 or revision, so that a full store needs no weights at all; else the sha256 of
the files, remembered by (path, size, modification time) in a small JSON file of the store, because hashing 300 MB for
every shard would cost more than a photo.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from likeness.config.base import ModelSource
from likeness.errors import UserError
from likeness.store import canonical_json, sha256_of_bytes, sha256_of_file, write_atomically

WEIGHT_ENDINGS = frozenset({".onnx", ".pt", ".pth", ".safetensors", ".json", ".yaml", ".jinja"})
REMEMBERED = "fingerprints.json"
WEIGHTS = "model.safetensors"
"""The weight file of a folder in transformers layout, where its weights are not in several."""


def files_fingerprint(path: Path, store_root: Path) -> str:
    """Fingerprint a weight file (its sha256) or a folder of them (digest of names and sha256s), wherever it lies."""
    cache = store_root / REMEMBERED
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = dict(json.loads(cache.read_bytes()))
    before = dict(known)
    if path.is_file():
        digest = _remembered_sha256(path, known)
    else:
        files = sorted(file for file in path.rglob("*") if file.suffix in WEIGHT_ENDINGS and file.is_file())
        digest = sha256_of_bytes(
            canonical_json(
                {file.relative_to(path).as_posix(): _remembered_sha256(file, known) for file in files}
            ).encode()
        )
    if known != before:
        write_atomically(cache, canonical_json(known).encode())
    return digest


def _remembered_sha256(path: Path, known: dict[str, str]) -> str:
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    if key not in known:
        known[key] = sha256_of_file(path)
    return known[key]


def model_fingerprint(model: ModelSource, path: Path | None, store_root: Path) -> str:
    """Fingerprint a configured model: its sha256, its revision, or its files at `path` (None: absent weights are an error upstream)."""
    if model.sha256:
        return model.sha256
    if model.revision:
        return f"{model.source}@{model.revision}"
    assert path is not None, "a model without revision or sha256 is fingerprinted by its files"
    return files_fingerprint(path, store_root)


def check_sha256(key: str, model: ModelSource, path: Path, store_root: Path) -> None:
    """Compare weights with the configured sha256 before they are first used; raises UserError where they differ.

    Of a folder its `model.safetensors` counts; one without such a file is compared by the digest of all its files.
    """
    if model.sha256 is None:
        return
    weights = path / WEIGHTS if (path / WEIGHTS).is_file() else path
    found = files_fingerprint(weights, store_root)
    if found != model.sha256:
        raise UserError(
            f"{key}: the weights at {weights} have sha256 {found}, but {key}.sha256 is {model.sha256}. "
            "Put the expected file there, or correct the setting."
        )


def weight_file(key: str, model: ModelSource, what: str) -> Path:
    """Find a single weight file; raises UserError naming file and folder where it is absent."""
    path = Path(model.source).expanduser()
    if not path.is_file():
        raise UserError(
            f"{key}: {what} is missing: no file {path.name!r} in the folder {path.parent}. Put it there, or set {key} to where it lies."
        )
    return path


def hub_folder(key: str, model: ModelSource, needed: tuple[str, ...], offline: bool) -> Path:
    """Find a model folder: a local path, else the hub's local copy; downloads only where `offline` is false.

    Raises UserError naming folder and files where something of `needed` is absent.
    """
    local = Path(model.source).expanduser()
    looks_like_hub = model.source.count("/") == 1 and not model.source.startswith((".", "~", "/"))
    if local.is_dir() or not looks_like_hub:
        folder = local
    else:
        folder = _hub_snapshot(key, model, needed, offline)
    absent = [name for name in needed if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{key}: the model folder {folder} lacks {', '.join(absent)}. Put the files there, or set {key} to a folder that has them."
        )
    return folder


def _hub_snapshot(key: str, model: ModelSource, needed: tuple[str, ...], offline: bool) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.source, revision=model.revision, local_files_only=offline))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        cached = Path(constants.HF_HUB_CACHE) / ("models--" + model.source.replace("/", "--"))
        hint = (
            "`offline` is true, so nothing is downloaded"
            if offline
            else f"the download failed ({type(error).__name__})"
        )
        raise UserError(
            f"{key}: the weights of {model.source!r} are missing: {hint}. Put {', '.join(needed) or 'its files'} into a folder and set "
            f"{key}.source to it, or fill the hub's folder {cached} (`make models`)."
        ) from None
