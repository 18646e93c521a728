"""One generated image with all that a metric may ask for; pictures are read only when a metric needs them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from likeness.evaluation.pictures import Pictures
from likeness.evaluation.prompts import GridPoint
from likeness.evaluation.recognise import Recogniser
from likeness.trigger import trigger_pattern

if TYPE_CHECKING:
    from likeness.evaluation.models import Models
    from likeness.faces.detector import Face

Image = NDArray[np.uint8]
BODY_GROWTH = 0.25
"""How far the person (or an edit's head or mask) is grown before backgrounds are compared, in face heights."""
MASK_GROWTH = 0.02
"""How far an edit's stored mask is grown where no face gives a scale, as a share of the picture's height."""


@dataclass(frozen=True)
class Subject:
    """What all images of a subject are compared with: unit embeddings of its photos, levels, and head size."""

    recipe: str
    trigger: str
    class_word: str
    reference_D: NDArray[np.float64] | None = None
    held_out_ND: NDArray[np.float64] | None = None
    training_ND: NDArray[np.float64] | None = None
    photo_head_size: float | None = None
    photo_sha256s: tuple[str, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One image of a checkpoint (sha256 of its PNG), the base's image of the same point, and its siblings over seeds."""

    point: GridPoint
    image_sha256: str
    base_sha256: str | None
    sibling_sha256s: tuple[str, ...]
    is_base: bool
    subject: Subject
    pictures: Pictures
    recogniser: Recogniser
    models: Models

    @property
    def recipe(self) -> str:
        return self.subject.recipe

    @property
    def calibration(self) -> Mapping[str, Any]:
        return self.subject.calibration

    @property
    def has_recogniser(self) -> bool:
        return self.recogniser.is_recogniser

    @property
    def embedding_kind(self) -> str:
        return self.recogniser.name

    @property
    def size_px(self) -> tuple[int, int]:
        return (self.point.width_px, self.point.height_px)

    @property
    def is_own_base(self) -> bool:
        """Whether the image would be compared with itself: a base's image of a character or style."""
        return self.is_base and not self.point.reference_sha256s

    @property
    def against_sha256(self) -> str | None:
        """Content of the image to compare with: an edit's source, else the base's image."""
        return self.point.reference_sha256s[0] if self.point.reference_sha256s else self.base_sha256

    @cached_property
    def image_HWC(self) -> Image:
        return self.pictures.generated(self.image_sha256)

    @cached_property
    def against_HWC(self) -> Image | None:
        return self._against()

    def _against(self) -> Image | None:
        if self.point.reference_sha256s:
            return self.pictures.photo(self.point.reference_sha256s[0], self.size_px)
        return None if self.base_sha256 is None else self.pictures.generated(self.base_sha256)

    @cached_property
    def target_HWC(self) -> Image | None:
        if self.point.target_sha256 is None:
            return None
        return self.pictures.photo(self.point.target_sha256, self.size_px)

    @cached_property
    def siblings_HWC(self) -> list[Image]:
        return [self.pictures.generated(sha256) for sha256 in self.sibling_sha256s]

    @cached_property
    def face(self) -> Face | None:
        return self.recogniser.face(self.image_sha256, lambda: self.image_HWC)

    @cached_property
    def against_face(self) -> Face | None:
        if self.against_sha256 is None:
            return None
        if self.point.reference_sha256s:
            content = f"{self.against_sha256} {self.size_px}"
            return self.recogniser.face(content, lambda: self.pictures.photo(self.against_sha256, self.size_px))  # type: ignore[arg-type]
        return self.recogniser.face(self.against_sha256, lambda: self.pictures.generated(self.against_sha256))  # type: ignore[arg-type]

    @cached_property
    def reference_D(self) -> NDArray[np.float64] | None:
        """Embedding to compare with: an edit's face reference or source, else the subject's."""
        if not self.point.reference_sha256s:
            return self.subject.reference_D
        sources = list(self.point.reference_sha256s)
        sha256 = sources[min(1, len(sources) - 1)]
        face = self.recogniser.face(sha256, lambda: self.pictures.photo(sha256))
        return None if face is None or face.embedding_D is None else face.embedding_D.astype(np.float64)

    @property
    def training_ND(self) -> NDArray[np.float64] | None:
        return self.subject.training_ND

    @property
    def held_out_ND(self) -> NDArray[np.float64] | None:
        return self.subject.held_out_ND

    @cached_property
    def head_size(self) -> float | None:
        """Size of the head in the image, as `head_size` measures it."""
        if self.face is None:
            return None
        return head_size(self.models, self.image_sha256, lambda: self.image_HWC, self.face)

    @cached_property
    def photo_head_size(self) -> float | None:
        """The same of what to compare with: an edit's source, else the median of the subject's photos."""
        if not self.point.reference_sha256s:
            return self.subject.photo_head_size
        if self.against_face is None:
            return None
        content = f"{self.against_sha256} {self.size_px}"
        source = str(self.against_sha256)
        return head_size(self.models, content, lambda: self.pictures.photo(source, self.size_px), self.against_face)

    @cached_property
    def outside_HW(self) -> NDArray[np.bool_] | None:
        """Where the picture must not change, in both images; None where no face says where the person is.

        A character's or style's person is estimated from the face boxes of both images. An edit's own mask counts where
        the pair has one, else the head; a picture without any face counts as all background for a style.
        """
        faces = [face for face in (self.face, self.against_face) if face is not None]
        inside_HW = np.zeros(self.image_HWC.shape[:2], bool)
        if self.point.mask_sha256:
            inside_HW |= self.pictures.mask(self.point.mask_sha256, self.size_px)
        elif not faces and self.recipe != "style":
            return None
        height_px = max([face.box[3] - face.box[1] for face in faces], default=0.0)
        if not self.point.mask_sha256:
            for face in faces:
                inside_HW |= estimated_region(self.image_HWC, face, "head" if self.recipe == "edit" else "person")
        radius_px = BODY_GROWTH * height_px or MASK_GROWTH * self.image_HWC.shape[0]
        return ~grown(inside_HW, round(radius_px)) if inside_HW.any() else ~inside_HW

    @cached_property
    def plain_prompt(self) -> str:
        """The prompt without the trigger, for models that do not know it."""
        trigger = trigger_pattern(self.subject.trigger)
        text = re.sub(rf"\s*{trigger.pattern}", "", self.point.prompt, flags=trigger.flags)
        return re.sub(r"^[\s,]+|\s{2,}", lambda found: " " if found.start() else "", text).strip()

    @cached_property
    def clip_image_D(self) -> NDArray[np.float64]:
        assert self.models.clip is not None
        return self.models.clip.image_embedding(self.pictures.name_of(self.image_sha256), lambda: self.image_HWC)

    @cached_property
    def style_D(self) -> NDArray[np.float64] | None:
        """Mean direction of the subject's pictures in CLIP's space."""
        from likeness.evaluation.recognise import mean_direction

        assert self.models.clip is not None
        clip = self.models.clip
        found = [
            clip.image_embedding(self.pictures.name_of(sha256), lambda sha256=sha256: self.pictures.photo(sha256))
            for sha256 in self.subject.photo_sha256s
        ]
        return mean_direction(np.array(found)) if found else None


def head_size(models: Models, content: str, load: Callable[[], Image], face: Face) -> float | None:
    """Face height over shoulder width where a body model is configured (None without shoulders), else over the picture's height."""
    face_height_px = face.box[3] - face.box[1]
    if models.body is None:
        return face_height_px / load().shape[0]
    rows, columns = np.nonzero(estimated_region(load(), face, "person"))
    box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
    width_px = models.body.shoulder_width(content, load, box)
    return None if width_px is None else face_height_px / width_px


def estimated_region(image_HWC: Image, face: Face, kind: str) -> NDArray[np.bool_]:
    """Head or person around a face, estimated from its box (H, W)."""
    from likeness.quality.regions import View, head_region, person_region

    view = View(image_HWC, face.box)
    return head_region(view) if kind == "head" else person_region(view)


def grown(mask_HW: NDArray[np.bool_], radius_px: int) -> NDArray[np.bool_]:
    from likeness.quality import regions

    return regions.grown(mask_HW, radius_px)
