"""Pictures of the class that the bare base model draws: what prior preservation keeps (DreamBooth, arXiv:2208.12242).

They are drawn as evaluation images are, with the checkpoint that is trained, and are items of the store: more pictures
cost only themselves. Their files are by-products, which encoding takes back from the store where they are gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from likeness.config.evaluation import ScoreStage
from likeness.config.regularisation import ClassImagesStage
from likeness.evaluation.draw import Drawer, Request
from likeness.evaluation.prompts import GridPoint
from likeness.program import as_about
from likeness.store import Store
from likeness.tables import PHOTOS, write_table

VERSION = 1
FOLDER = "drawn"


def draw_class_images(stage: ClassImagesStage, store: Store, output: Path) -> int:
    """Draw the pictures into a folder beside the PHOTOS table `output`; returns how many models were loaded."""
    drawer = Drawer(score_stage(stage), store, {})
    points = [
        GridPoint(FOLDER, FOLDER, stage.caption, stage.seed + place, "select", stage.size_px, stage.size_px)
        for place in range(stage.drawn)
    ]
    drawn = drawer.draw([Request(point) for point in points])
    rows = [
        row_of(place, drawn[Request(point)], stage, store, output.parent / FOLDER) for place, point in enumerate(points)
    ]
    about = as_about(
        "class-images", VERSION, stage.model_dump(mode="json", exclude={"base_model"}), base=drawer.fingerprint
    )
    write_table(output, PHOTOS, rows, about)
    return drawer.models_loaded


def row_of(place: int, sha256: str, stage: ClassImagesStage, store: Store, folder: Path) -> dict[str, Any]:
    """Put a drawn picture into the folder and describe it as a photo."""
    path = folder / f"{place:04d}.png"
    store.restore(sha256, path)
    return {
        "id": f"{FOLDER}-{place:04d}",
        "path": path.as_posix(),
        "repeats": 1,
        "sha256": sha256,
        "size_bytes": path.stat().st_size,
        "format": "PNG",
        "width_px": stage.size_px,
        "height_px": stage.size_px,
        "status": "ok",
        "reason": "",
    }


def score_stage(stage: ClassImagesStage) -> ScoreStage:
    """What the drawer is told: the sampling of these pictures, and nothing of any metric."""
    evaluation = {
        "sampling_steps": stage.sampling_steps,
        "guidance_scale": stage.guidance_scale,
        "batch_size": stage.batch_size,
        "precision": stage.precision,
        "cpu_threads": stage.cpu_threads,
    }
    values = {"evaluation": evaluation, "prompts": {}, "recipe": "character", "kind": "photos"}
    values |= {"trigger": "", "class_word": "", "base_model": stage.base_model, "buckets": {}, "offline": stage.offline}
    return ScoreStage.model_validate(values)
