"""Draw one image with a published LoRA, for trying it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from likeness.config.evaluation import ScoreStage
from likeness.evaluation.draw import Drawer, LoraFile, Request
from likeness.evaluation.mix import Mixture, MixtureDrawer
from likeness.evaluation.prompts import GridPoint, fill
from likeness.photos.images import ImageRef
from likeness.photos.load import read_header, read_photo_bytes
from likeness.store import Store, sha256_of_bytes, sha256_of_file
from likeness.training.buckets import assign_bucket, bucket_sizes


def draw_once(
    stage: ScoreStage,
    store: Store,
    lora: Path | None,
    prompt: str,
    output: Path,
    *,
    scale: float = 1.0,
    seed: int = 1,
    references: Sequence[ImageRef] = (),
    size_px: tuple[int, int] | None = None,
    mixture: Mixture | None = None,
) -> str:
    """Draw one image (None: with the bare base) to `output` as PNG and return its sha256.

    `{trigger}` and `{class}` in the prompt are filled in; `mixture` holds other LoRAs to use as well.
    Size is (width, height) in px, by default the evaluation's.
    """
    width_px, height_px = size_px or (stage.evaluation.width_px, stage.evaluation.height_px)
    images: Mapping[str, ImageRef] = {image.sha256: image for image in references}
    point = GridPoint(
        "try",
        "subject",
        fill(prompt, stage.trigger, stage.class_word),
        seed,
        "select",
        width_px,
        height_px,
        reference_sha256s=tuple(image.sha256 for image in references),
    )
    request = Request(point, LoraFile(lora, sha256_of_file(lora)) if lora else None, scale)
    drawer = Drawer(stage, store, images) if mixture is None else MixtureDrawer(stage, store, images, mixture)
    sha256 = drawer.draw([request])[request]
    store.restore(sha256, output)
    return sha256


def image_of(path: Path) -> ImageRef:
    """Describe a picture on disk as a reference; PhotoError where it is missing or no image."""
    data = read_photo_bytes(path)
    header = read_header(data, str(path))
    return ImageRef(path.stem, "reference", str(path), sha256_of_bytes(data), header.width_px, header.height_px, 1)


def size_for(stage: ScoreStage, references: Sequence[ImageRef]) -> tuple[int, int] | None:
    """The size at which an edit of the first reference is drawn, (width, height) in px; None without references."""
    if not references:
        return None
    width_px, height_px = references[0].width_px, references[0].height_px
    assert width_px and height_px
    token_px = Drawer(stage, Store(Path()), {}).token_px
    return assign_bucket(width_px, height_px, bucket_sizes(stage.buckets, token_px))
