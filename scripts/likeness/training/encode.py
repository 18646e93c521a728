"""Encode what training reads: latents of targets and references, text embeddings, and loss weights, each a stored item.

Neither VAE nor text encoder is needed afterwards. Items hang on the bytes of the picture, the caption, the bucket and
the base model, so phases and subjects share them, and a later phase on a subset of the samples computes nothing; torch
is imported at the first miss. Pictures go through the VAE in float32 and captions through the text encoder in the type
of its file, wherever that happens.

Axes: C channels, H and W (of tokens for latents), T text tokens, D embedding width.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likeness.config.training import BucketSettings, EncodeStage
from likeness.errors import UserError
from likeness.klein.diptych import diptych_caption, join
from likeness.klein.load import BaseModel
from likeness.photos.images import ImageRef, read_images
from likeness.program import as_about
from likeness.store import Store, canonical_json, item_key, sha256_of_bytes
from likeness.tables import ENCODED, HOLDOUT, MANIFEST, SAMPLE_FACES, read_rows, write_table
from likeness.training.base import open_base
from likeness.training.buckets import (
    Size,
    assign_bucket,
    bucket_sizes,
    cover_and_crop,
    mirror_box,
    mirror_landmarks,
    to_bucket,
)
from likeness.trigger import trigger_pattern

if TYPE_CHECKING:
    import numpy as np
    import torch

VERSION = 1
LATENTS, REFERENCES, EMBEDDINGS, WEIGHTS = "latents", "reference-latents", "embeddings", "loss-weights"
FILE = "tensor.safetensors"
TENSOR = "tensor"
LARGEST_ENLARGEMENT = 1.5
"""Photos that are enlarged more than this are named in a warning: they teach blur."""

logger = logging.getLogger(__name__)


def encode_samples(
    stage: EncodeStage,
    manifest: Path,
    images: Path,
    store: Store,
    output: Path,
    holdout: Path | None = None,
    faces: Sequence[Path] = (),
    regularisation: Sequence[Path] = (),
) -> int:
    """Encode every row of a manifest, what is held out, and all pictures of the tables `regularisation`, into the ENCODED
    table; returns how many models were loaded.

    Raises UserError for a photo that changed since it was indexed, is missing, or whose mask leaves nothing to learn.
    """
    rows = read_rows(manifest, MANIFEST)
    kept = [row for row in read_rows(holdout, HOLDOUT) if row["use"] == "held_out"] if holdout else []
    of_class = [image for table in regularisation for image in class_images(table, store)]
    extra = [regularisation_row(image, stage.regularisation_caption) for image in of_class]
    samples = [
        (row, use) for group, use in ((rows, ""), (kept, "held_out"), (extra, "regularisation")) for row in group
    ]
    by_sha256 = {image.sha256: image for image in reversed([*read_images(images), *of_class])}
    encoder = SampleEncoder(stage, store, by_sha256, read_sample_faces(faces))
    warn_of_captions(encoder, rows)
    everything = [
        (buckets, row, use, mirrored)
        for buckets in stage.buckets
        for mirrored in ((False, True) if stage.mirrored else (False,))
        for row, use in samples
        if not (use and mirrored)
    ]
    pictures = [encoder.pictures_of(row, buckets, mirrored) for buckets, row, _, mirrored in everything]
    encoder.release_vae()
    said = [caption_of(row, buckets) for buckets, row, _, _ in everything]
    classes = {caption: class_caption(stage, caption) for caption in said if stage.class_captions}
    captions = dict.fromkeys(["", *said, *classes.values(), *stage.prompts])
    texts = {caption: encoder.embedding(caption) for caption in captions}
    encoded = [
        {
            **of_picture,
            "embedding_sha256": texts[caption],
            "empty_embedding_sha256": texts[""],
            "repeats": row["repeats"],
            "class_embedding_sha256": texts[classes[caption]] if stage.class_captions else None,
            "prompts": list(stage.prompts),
            "prompt_embedding_sha256s": [texts[prompt] for prompt in stage.prompts],
            "held_out": use == "held_out",
            "regularisation": use == "regularisation",
        }
        for of_picture, caption, (_, row, use, _) in zip(pictures, said, everything, strict=True)
    ]
    about = as_about(
        "encoded", VERSION, stage.model_dump(mode="json", exclude={"base_model"}), base=encoder.fingerprint
    )
    write_table(output, ENCODED, encoded, about)
    return encoder.models_loaded


@dataclass
class SampleEncoder:
    """Makes the items of samples; `images` maps the sha256 of each usable image to where it lies, `faces` that of
    an image to the subject's face there."""

    stage: EncodeStage
    store: Store
    images: Mapping[str, ImageRef]
    faces: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    models_loaded: int = field(default=0, init=False)

    @cached_property
    def base(self) -> BaseModel:
        return open_base(self.stage.base_model, offline=self.stage.offline)

    @cached_property
    def fingerprint(self) -> str:
        return self.base.fingerprint

    def pictures_of(self, row: Mapping[str, Any], buckets: BucketSettings, mirrored: bool = False) -> dict[str, Any]:
        """The columns of ENCODED that come from a manifest row's target, references and mask, all mirrored or none."""
        target = self.image_of(row["image_sha256"])
        if not target.width_px or not target.height_px:
            raise UserError(f"{target.path}: its size is missing from the images table. Run the photos stage again.")
        size = assign_bucket(target.width_px, target.height_px, bucket_sizes(buckets, self.base.token_px))
        warn_of_enlargement(target, size)
        mask_sha256 = row["mask_sha256"] if self.stage.mask_kind is not None else None
        pictures = (
            self.diptych_of(row, target, size, mirrored)
            if buckets.diptych
            else self.picture_of(row, target, size, buckets, mirrored)
        )
        return {
            "sample_id": row["sample_id"],
            "resolution_px": buckets.resolution_px,
            "height_px": size[1],
            "weight_sha256": self.weights(target, mask_sha256, size, mirrored) if mask_sha256 else None,
            "source_latents_sha256": self.source_of(row, size, mirrored) if self.stage.sources else None,
            **pictures,
            "mirrored": mirrored,
        }

    def picture_of(
        self, row: Mapping[str, Any], target: ImageRef, size: Size, buckets: BucketSettings, mirrored: bool
    ) -> dict[str, Any]:
        """A target with its references beside it."""
        max_pixels = buckets.reference_resolution_px**2 if buckets.reference_resolution_px else None
        references = [
            self.reference(self.image_of(sha256), max_pixels, mirrored) for sha256 in row["reference_sha256s"] or []
        ]
        return {
            "width_px": size[0],
            "latents_sha256": self.target(target, size, mirrored),
            "reference_latents_sha256s": references,
            **self.face_of(target, size, mirrored),
        }

    def diptych_of(self, row: Mapping[str, Any], target: ImageRef, size: Size, mirrored: bool) -> dict[str, Any]:
        """Source and target, each mirrored or none, as one picture of twice the width; the face is that of the right half."""
        source = self.image_of(row["reference_sha256s"][0])
        content = ["diptych", source.sha256, target.sha256, *size, *marked(mirrored)]
        face = self.face_of(target, size, mirrored)
        return {
            "width_px": 2 * size[0],
            "latents_sha256": self.item(LATENTS, content, lambda: self._encode_diptych(source, target, size, mirrored)),
            "reference_latents_sha256s": [],
            **{name: moved_right(values, size[0]) for name, values in face.items()},
        }

    def source_of(self, row: Mapping[str, Any], size: Size, mirrored: bool) -> str | None:
        """A pair's source, brought to its target's bucket as the target is; None for a picture without one."""
        sources = row["reference_sha256s"]
        return self.target(self.image_of(sources[0]), size, mirrored) if sources else None

    def face_of(self, image: ImageRef, size: Size, mirrored: bool) -> dict[str, Any]:
        """The subject's landmarks and box in px of the bucket, where they are read and known."""
        face = self.faces.get(image.sha256)
        if face is None:
            return {"landmarks": None, "face_box": None}
        photo_px = (image.width_px or 0, image.height_px or 0)
        box = to_bucket(face["box"], photo_px, size)
        points = face["landmarks"]
        landmarks = to_bucket(points, photo_px, size) if points is not None and len(points) == 10 else None
        if mirrored:
            box, landmarks = mirror_box(box, size[0]), mirror_landmarks(landmarks, size[0]) if landmarks else None
        return {"landmarks": landmarks, "face_box": box}

    def image_of(self, sha256: str) -> ImageRef:
        if sha256 not in self.images:
            raise UserError(
                f"the manifest names an image with sha256 {sha256[:12]}… that the images table does not have. "
                "Run the pipeline from the photos stage again."
            )
        return self.images[sha256]

    def target(self, image: ImageRef, size: Size, mirrored: bool = False) -> str:
        """Latents_CHW of a target, brought to its bucket."""
        content = [image.sha256, *size, *marked(mirrored)]
        return self.item(LATENTS, content, lambda: self._encode_target(image, size, mirrored))

    def reference(self, image: ImageRef, max_pixels: int | None, mirrored: bool = False) -> str:
        """Latents_CHW of a reference at its own size, capped to `max_pixels` (None: to the pipeline's own cap)."""
        content = [image.sha256, max_pixels, *marked(mirrored)]
        return self.item(REFERENCES, content, lambda: self._encode_reference(image, max_pixels, mirrored))

    def embedding(self, caption: str) -> str:
        """Embedding_TD of a caption; "" stands for caption dropout."""
        return self.item(EMBEDDINGS, sha256_of_bytes(caption.encode()), lambda: self._encode_caption(caption))

    def weights(self, image: ImageRef, mask_sha256: str, size: Size, mirrored: bool = False) -> str:
        """Mask_HW on the token grid: the share of each token that lies inside, 0..1."""
        content = [mask_sha256, image.width_px, image.height_px, *size, self.base.token_px, *marked(mirrored)]
        key = item_key(WEIGHTS, VERSION, None, "", content)
        item = self.store.load_or_compute(WEIGHTS, key, lambda: self._average_mask(image, mask_sha256, size, mirrored))
        if item.record["largest"] == 0 and 0 in self.stage.unmasked_weights:
            raise UserError(
                f"{image.path}: nothing of its mask lies inside the training crop of {size[0]}×{size[1]} px, and "
                "training.masked_loss.unmasked_weight is 0, so there is nothing to learn from it. "
                "Drop it (never:), correct its mask, or raise unmasked_weight or buckets.max_aspect."
            )
        return item.files[FILE]

    def item(self, stage: str, content: Any, compute: Any) -> str:
        """The sha256 of an item's one tensor file, made by `compute() -> tensor` where it is not in the store."""
        key = item_key(stage, VERSION, None, self.fingerprint, content)
        return self.store.load_or_compute(stage, key, lambda: ({}, {FILE: tensor_bytes(compute())})).files[FILE]

    def release_vae(self) -> None:
        """Free the VAE before the text encoder is loaded."""
        if "vae_base" in self.__dict__:
            self.vae_base.release("vae")

    @cached_property
    def vae_base(self) -> BaseModel:
        self.models_loaded += 1
        return open_base(self.stage.base_model, offline=self.stage.offline, on_gpu=True)

    @cached_property
    def text_base(self) -> BaseModel:
        self.models_loaded += 1
        config = self.base.config_of("text_encoder")
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
        return open_base(self.stage.base_model, offline=self.stage.offline, dtype=dtype, on_gpu=True)

    def _encode_target(self, image: ImageRef, size: Size, mirrored: bool) -> torch.Tensor:
        return self._encode_pixels(as_shown(cover_and_crop(read_checked(image), size), mirrored))

    def _encode_diptych(self, source: ImageRef, target: ImageRef, size: Size, mirrored: bool) -> torch.Tensor:
        halves = [as_shown(cover_and_crop(read_checked(image), size), mirrored) for image in (source, target)]
        return self._encode_pixels(join(*halves))

    def _encode_pixels(self, pixels_HWC: np.ndarray) -> torch.Tensor:
        import torch

        from likeness.klein.latents import encode_images

        image_CHW = torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1).float() / 127.5 - 1.0
        return encode_images(self.vae_base.vae, image_CHW[None])[0]

    def _encode_reference(self, image: ImageRef, max_pixels: int | None, mirrored: bool) -> torch.Tensor:
        from PIL import Image

        from likeness.klein.ids import REFERENCE_MAX_PIXELS, preprocess_reference
        from likeness.klein.latents import encode_images

        picture = Image.fromarray(read_checked(image))
        try:
            image_CHW = preprocess_reference(picture, self.base.token_px, max_pixels or REFERENCE_MAX_PIXELS)
        except ValueError as error:
            raise UserError(f"{image.path}: {error}. Drop the pair or give a larger reference.") from error
        image_CHW = image_CHW.flip(-1) if mirrored else image_CHW
        return encode_images(self.vae_base.vae, image_CHW[None])[0]

    def _encode_caption(self, caption: str) -> torch.Tensor:
        from likeness.klein.text import encode_prompts

        return encode_prompts(self.text_base, [caption])[0]

    def _average_mask(
        self, image: ImageRef, mask_sha256: str, size: Size, mirrored: bool
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        mask_HW = read_mask(self.store, mask_sha256, image)
        weights_HW = mask_on_tokens(as_shown(cover_and_crop(mask_HW, size), mirrored), self.base.token_px)
        return {"largest": float(weights_HW.max())}, {FILE: tensor_bytes(weights_HW)}


def marked(mirrored: bool) -> list[str]:
    """What a mirrored picture's item has in its name beyond the plain one's."""
    return ["mirrored"] if mirrored else []


def as_shown(pixels: np.ndarray, mirrored: bool) -> np.ndarray:
    """Pixels (H, W) or (H, W, C), mirrored left to right where asked for."""
    return pixels[:, ::-1] if mirrored else pixels


def warn_of_captions(encoder: SampleEncoder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Warn of captions that do not go with the settings; `rows` are the manifest's."""
    if encoder.stage.mirrored:
        warn_of_sides(rows)
    if encoder.stage.class_captions:
        by_path = {encoder.image_of(row["image_sha256"]).path: row["caption"] for row in rows}
        warn_of_unchanged_captions(encoder.stage, by_path)


def warn_of_sides(rows: Sequence[Mapping[str, Any]]) -> None:
    """Warn of captions that say left or right, which a mirrored picture makes wrong."""
    sided = [row["caption"] for row in rows if re.search(r"\b(left|right)\b", row["caption"], re.IGNORECASE)]
    if sided:
        logger.warning(
            "training.flip: %d of %d captions say left or right, which is wrong in the mirrored picture; the first: %.80s",
            *(len(sided), len(rows), sided[0]),
        )


def caption_of(row: Mapping[str, Any], buckets: BucketSettings) -> str:
    """The caption that is encoded: a diptych's says what is on its halves."""
    return diptych_caption(row["caption"]) if buckets.diptych else row["caption"]


def moved_right(points: Sequence[float] | None, by_px: int) -> list[float] | None:
    """Points x, y, x, y … so many px further right."""
    return None if points is None else [value + by_px * (place % 2 == 0) for place, value in enumerate(points)]


def class_images(table: Path, store: Store) -> list[ImageRef]:
    """The usable pictures of a regularisation table; those that were drawn lie beside it, and are taken back from the
    store where they are gone or changed (DamagedFileError where the store lost them too)."""
    images = read_images(table)
    for image in images:
        if table.parent in Path(image.path).parents:
            store.restore(image.sha256, Path(image.path))
    return images


def regularisation_row(image: ImageRef, caption: str) -> dict[str, Any]:
    """A picture of the class as a manifest has the subject's; its id is another one than that of a subject's sample."""
    content = canonical_json(["regularisation", image.sha256, caption])
    return {
        "sample_id": sha256_of_bytes(content.encode()),
        "image_sha256": image.sha256,
        "mask_sha256": None,
        "reference_sha256s": [],
        "caption": caption,
        "repeats": image.repeats,
    }


def read_sample_faces(tables: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The subject's face in every sample that shows one, by the sha256 of its picture."""
    return {row["image_sha256"]: row for table in tables for row in read_rows(table, SAMPLE_FACES)}


def class_caption(stage: EncodeStage, caption: str) -> str:
    """The caption with the class in the trigger's place; where the class follows the trigger, it is not said twice."""
    if not stage.trigger or not stage.class_word:
        raise UserError(
            "training.losses.output_preservation: it needs the subject's trigger and class_word, which captions exchange. "
            "Set both, or switch it off."
        )
    return trigger_pattern(stage.trigger, stage.class_word).sub(lambda _: stage.class_word, caption)


def warn_of_unchanged_captions(stage: EncodeStage, captions: Mapping[str, str]) -> None:
    """Warn of each picture in whose caption nothing gives way to the class; `captions` by the picture's path."""
    for path, caption in captions.items():
        if class_caption(stage, caption) == caption:
            logger.warning(
                "training.losses.output_preservation: %s: its caption has no %r that the class could replace, so the base model's "
                "answer is kept for the very words that are learned: %.80s. Write the trigger into the caption, drop the picture "
                "(never:), or switch the loss off.",
                *(path, stage.trigger, caption),
            )


def mask_on_tokens(mask_HW: np.ndarray, token_px: int) -> torch.Tensor:
    """Average an 8-bit mask over the area of each token: float32 (H / token_px, W / token_px), 0..1."""
    import torch
    from torch.nn.functional import interpolate

    pixels_11HW = torch.from_numpy(mask_HW.copy())[None, None].float() / 255.0
    grid = (mask_HW.shape[0] // token_px, mask_HW.shape[1] // token_px)
    return interpolate(pixels_11HW, size=grid, mode="area")[0, 0]


def read_checked(image: ImageRef) -> np.ndarray:
    """Read a photo as image_HWC, after checking that its bytes are those that were indexed."""
    from likeness.photos.load import decode_photo, read_photo_bytes

    data = read_photo_bytes(image.path)
    if sha256_of_bytes(data) != image.sha256:
        raise UserError(f"{image.path}: the file changed since it was indexed. Run the pipeline again from the start.")
    return decode_photo(data, image.path)


def read_mask(store: Store, mask_sha256: str, image: ImageRef) -> np.ndarray:
    """Read a stored mask as (H, W) uint8; UserError where it is not on the photo's own grid."""
    import numpy as np
    from PIL import Image

    mask_HW = np.asarray(Image.open(io.BytesIO(store.read_blob(mask_sha256))).convert("L"))
    if mask_HW.shape != (image.height_px, image.width_px):
        raise UserError(
            f"{image.path}: its mask has {mask_HW.shape[1]}×{mask_HW.shape[0]} px, but the photo has "
            f"{image.width_px}×{image.height_px} px. Masks lie on the photo's own grid; make the mask anew."
        )
    return mask_HW


def warn_of_enlargement(image: ImageRef, size: Size) -> None:
    """Warn of a photo much smaller than its bucket."""
    scale = max(size[0] / (image.width_px or 1), size[1] / (image.height_px or 1))
    if scale > LARGEST_ENLARGEMENT:
        logger.warning(
            "%s: %s×%s px are enlarged %.1f-fold to the bucket %d×%d; it will teach blur",
            *(image.path, image.width_px, image.height_px, scale, *size),
        )


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Write one tensor as safetensors bytes."""
    from safetensors.torch import save

    return save({TENSOR: tensor.detach().cpu().contiguous()})


def read_tensors(store: Store, hashes: Sequence[str]) -> dict[str, torch.Tensor]:
    """Read encoded tensors by their sha256, each checked; DamagedFileError where one is damaged or deleted."""
    from safetensors.torch import load

    return {sha256: load(store.read_blob(sha256))[TENSOR] for sha256 in dict.fromkeys(hashes)}
