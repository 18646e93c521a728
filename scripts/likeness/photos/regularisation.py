"""Index the photos of the regularisation set: files are hashed and measured as photos are, and nothing else is asked."""

from __future__ import annotations

from typing import Any

from likeness.config.regularisation import RegularisationStage
from likeness.errors import UserError
from likeness.packs import PackedItems
from likeness.photos.index import STAGE, check_any, check_folders, index_photo
from likeness.photos.names import list_photos
from likeness.store import Store

KEY = "regularisation.photos"


def index_regularisation(stage: RegularisationStage, store: Store) -> list[dict[str, Any]]:
    """One PHOTOS row a file; UserError where a folder is absent, or where none of its photos can be used."""
    check_folders(stage.folders, KEY)
    found = list_photos(stage.folders)
    check_any(found, stage.folders, KEY)
    with PackedItems(store, STAGE) as known:
        rows = [index_photo(photo, stage.photo, known) for photo in found]
    if not any(row["status"] == "ok" for row in rows):
        raise UserError(f"{KEY}: none of {len(rows)} photos can be used; the first: {rows[0]['reason']}")
    return rows
