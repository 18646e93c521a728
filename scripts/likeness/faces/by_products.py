"""Put pictures for people beside the results: restored from the store, deleted when no row names them any more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from likeness.locks import writing
from likeness.store import Store


def restore_folder(store: Store, folder: Path, files: Mapping[str, str]) -> None:
    """Make `folder` hold exactly the PNG files {name: sha256} of the store; other .png files in it are deleted.

    UserError where another process writes the same folder.
    """
    with writing(folder):
        for path in folder.glob("*.png"):
            if path.name not in files:
                path.unlink(missing_ok=True)
        for name, sha256 in sorted(files.items()):
            store.restore(sha256, folder / name)


def picture_name(id: str, role: str, face: int, *parts: str) -> str:
    """Name a picture of one candidate face: `<id>[.<role>][.<face>][.<part>].png`; photo and face 0 go without saying."""
    named = [id, *([] if role == "photo" else [role]), *([] if face == 0 else [str(face)]), *parts]
    return ".".join(named) + ".png"
