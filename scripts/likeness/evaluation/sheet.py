"""Contact sheets and the folder of images: by-products for people, restored from the store."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from likeness.store import Store, write_atomically

CELL_PX = 176
LABEL_PX = 16
MARGIN_PX = 4
MOST_COLUMNS = 24


def write_images(folder: Path, images: Mapping[str, str], store: Store) -> None:
    """Restore images (relative name without ending → sha256) below `folder` and delete those that are not named."""
    wanted = {folder / f"{name}.png": sha256 for name, sha256 in images.items()}
    for path, sha256 in wanted.items():
        store.restore(sha256, path)
    for path in sorted(folder.rglob("*"), reverse=True) if folder.is_dir() else []:
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in wanted:
            path.unlink()


def write_sheet(
    path: Path, rows: Sequence[str], columns: Sequence[str], images: Mapping[tuple[str, str], str], store: Store
) -> None:
    """Write a JPEG grid: `images` maps (row, column) to an image's sha256; absent cells stay empty.

    Of more than 24 columns an even choice with the first and the last is shown.
    """
    from PIL import Image, ImageDraw

    shown = thinned(columns, MOST_COLUMNS)
    label_width = 8 + 7 * max((len(row) for row in rows), default=0)
    width = label_width + len(shown) * (CELL_PX + MARGIN_PX) + MARGIN_PX
    height = LABEL_PX + len(rows) * (CELL_PX + MARGIN_PX) + MARGIN_PX
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for at, column in enumerate(shown):
        draw.text((label_width + at * (CELL_PX + MARGIN_PX), 2), column, fill="black")
    for down, row in enumerate(rows):
        top = LABEL_PX + down * (CELL_PX + MARGIN_PX)
        draw.text((4, top + CELL_PX // 2), row, fill="black")
        for at, column in enumerate(shown):
            if (row, column) in images:
                cell = Image.open(io.BytesIO(store.read_blob(images[row, column]))).convert("RGB")
                filter_ = Image.Resampling.NEAREST if max(cell.size) < CELL_PX / 2 else Image.Resampling.LANCZOS
                scale = CELL_PX / max(cell.size)
                size = (max(1, round(cell.width * scale)), max(1, round(cell.height * scale)))
                sheet.paste(cell.resize(size, filter_), (label_width + at * (CELL_PX + MARGIN_PX), top))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=88)
    write_atomically(path, buffer.getvalue())


def thinned(columns: Sequence[str], most: int) -> list[str]:
    """At most so many columns, evenly chosen, the first and the last among them."""
    if len(columns) <= most:
        return list(columns)
    return [columns[round(index * (len(columns) - 1) / (most - 1))] for index in range(most)]
