"""Drawn photos and pairs with everything known: views with true masks, boxes and landmarks, and planted defects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from likeness.config.quality import QualitySettings
from likeness.miniature.scenes import HAIR, IDENTITY_FIELDS, SKIN, Scene, sample_identities, sample_scenes
from likeness.miniature.world import render
from likeness.quality import pairs
from likeness.quality.measure import photo_measures
from likeness.quality.regions import View

SIZE_PX = 256
SETTINGS = QualitySettings()


@dataclass(frozen=True)
class Drawn:
    """One drawn photo: who, in which scene, what it looks like, and the unit embedding of who it is."""

    identity_D: NDArray[np.float32]
    scene: Scene
    view: View
    embedding: list[float]


def draw(identity_D: NDArray, scene: Scene, person: int = 0, size_px: int = SIZE_PX) -> Drawn:
    """Draw one person; `person` numbers who a recogniser would say it is."""
    drawn = render(np.asarray(identity_D)[None], scene, size_px, size_px)
    masks = {"face": drawn.face_NHW[0], "head": drawn.head_NHW[0], "person": drawn.person_NHW[0]}
    box = tuple(float(value) for value in drawn.boxes_N4[0])
    image = np.rint(drawn.images_NHWC[0] * 255).astype(np.uint8)
    view = View(image, box, drawn.landmarks_N52[0].astype(np.float64), masks)  # type: ignore[arg-type]
    return Drawn(np.asarray(identity_D), scene, view, np.eye(8)[person].tolist())


def even_scene(rng: np.random.Generator, framing: str = "close") -> Scene:
    """A scene of front pose and good, even light, with any background and clothes."""
    scene = sample_scenes(1, rng, framing)
    return scene.change(
        yaw_deg=rng.uniform(-6, 6),
        light_direction=0.0,
        light_strength=0.2,
        brightness=1.0,
        light_temperature=0.0,
        smile=0.0,
    )


def person(rng: np.random.Generator) -> NDArray[np.float32]:
    """A person of medium skin and hair, so that a changed colour can be seen to change."""
    identity = sample_identities(1, rng)[0]
    identity[SKIN] = np.array([0.80, 0.60, 0.47]) + rng.uniform(-0.05, 0.05, 3)
    identity[HAIR] = np.array([0.42, 0.26, 0.14]) + rng.uniform(-0.05, 0.05, 3)
    identity[IDENTITY_FIELDS.index("hair_length")] = rng.uniform(0.3, 0.6)
    identity[IDENTITY_FIELDS.index("beard")] = identity[IDENTITY_FIELDS.index("glasses")] = 0
    return identity


def with_image(drawn: Drawn, image_HWC: NDArray[np.uint8]) -> Drawn:
    """The same photo with other pixels."""
    view = View(image_HWC, drawn.view.box, drawn.view.landmarks_52, drawn.view.masks_HW)
    return Drawn(drawn.identity_D, drawn.scene, view, drawn.embedding)


def changed(identity_D: NDArray, **traits: float) -> NDArray[np.float32]:
    """A copy of a person with some traits set."""
    copy = np.array(identity_D, np.float32)
    for name, value in traits.items():
        copy[IDENTITY_FIELDS.index(name)] = value
    return copy


def measured(photo: Drawn) -> dict[str, Any]:
    """All measures of a drawn photo."""
    return photo_measures(photo.view, SETTINGS) | {"yaw_deg": float(photo.scene.yaw_deg[0])}


def measured_pair(source: Drawn, target: Drawn) -> dict[str, Any]:
    """All measures of a drawn pair, those of the target included."""
    poses = [[float(drawn.scene.yaw_deg[0]), 0.0, float(drawn.scene.roll_deg[0])] for drawn in (source, target)]
    return (
        measured(target)
        | pairs.pixel_measures(source.view, target.view)
        | {
            "pose_delta_deg": pairs.pose_delta_deg(*poses),
            "pair_identity": pairs.cosine(source.embedding, target.embedding),
        }
    )


# Photos


def good_photo(rng: np.random.Generator) -> Drawn:
    return draw(person(rng), even_scene(rng))


def blurred(rng: np.random.Generator) -> Drawn:
    photo = good_photo(rng)
    sigma_px = 0.035 * photo.view.face_height_px
    return with_image(photo, cv2.GaussianBlur(photo.view.image_HWC, (0, 0), sigma_px).astype(np.uint8))


def burnt(rng: np.random.Generator) -> Drawn:
    photo = good_photo(rng)
    return with_image(photo, np.clip(photo.view.image_HWC * 2.6, 0, 255).astype(np.uint8))


def dark(rng: np.random.Generator) -> Drawn:
    photo = good_photo(rng)
    return with_image(photo, np.rint(photo.view.image_HWC * 0.03).astype(np.uint8))


def small(rng: np.random.Generator) -> Drawn:
    scene = even_scene(rng, "half")
    return draw(person(rng), scene.change(scale=0.19))


PHOTO_DEFECTS: dict[str, tuple[Callable[[np.random.Generator], Drawn], str]] = {
    "blurred": (blurred, "sharpness"),
    "burnt": (burnt, "clipped"),
    "dark": (dark, "clipped"),
    "small": (small, "face_px"),
}

# Pairs: the edit is a smile.


def good_pair(rng: np.random.Generator) -> tuple[Drawn, Drawn]:
    identity, scene = person(rng), even_scene(rng)
    return draw(identity, scene), draw(identity, scene.change(smile=0.9))


def redrawn(
    pair: tuple[Drawn, Drawn], scene: Scene | None = None, who: int = 0, **traits: float
) -> tuple[Drawn, Drawn]:
    """The pair with another target."""
    source, target = pair
    return source, draw(changed(target.identity_D, **traits), scene or target.scene, who)


def shifted(rng: np.random.Generator) -> tuple[Drawn, Drawn]:
    source, target = good_pair(rng)
    scene = target.scene
    moved = scene.change(centre_x=scene.centre_x + 3.4 / SIZE_PX, centre_y=scene.centre_y - 2.3 / SIZE_PX)
    return redrawn((source, target), moved)


def skin_changed(rng: np.random.Generator) -> tuple[Drawn, Drawn]:
    return redrawn(good_pair(rng), skin_red=0.45, skin_green=0.30, skin_blue=0.22)


def hair_recoloured(rng: np.random.Generator) -> tuple[Drawn, Drawn]:
    return redrawn(good_pair(rng), hair_red=0.88, hair_green=0.74, hair_blue=0.36)


def hair_lengthened(rng: np.random.Generator) -> tuple[Drawn, Drawn]:
    source, target = good_pair(rng)
    source = draw(changed(source.identity_D, hair_length=0.0), source.scene)
    return redrawn((source, target), hair_length=1.0)


def identity_swapped(rng: np.random.Generator) -> tuple[Drawn, Drawn]:
    """Another face with the same skin and hair."""
    traits = {"face_width": 0.74, "face_height": 0.97, "eye_spacing": 0.53, "eye_size": 0.09, "mouth_width": 0.30}
    return redrawn(good_pair(rng), who=1, **traits)


def unchanged(rng: np.random.Generator) -> tuple[Drawn, Drawn]:
    """Nothing but another pass through JPEG."""
    source, _ = good_pair(rng)
    coded = cv2.imencode(".jpg", source.view.image_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return source, with_image(source, np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]))


def background_swapped(rng: np.random.Generator) -> tuple[Drawn, Drawn]:
    source, target = good_pair(rng)
    before, after = ("white", "blue") if rng.uniform() < 0.5 else ("black", "yellow")
    source = draw(source.identity_D, source.scene.with_background(before))
    return redrawn((source, target), target.scene.with_background(after))


def turned(rng: np.random.Generator) -> tuple[Drawn, Drawn]:
    source, target = good_pair(rng)
    return redrawn((source, target), target.scene.change(yaw_deg=24.0))


PAIR_DEFECTS: dict[str, tuple[Callable[[np.random.Generator], tuple[Drawn, Drawn]], str]] = {
    "shifted": (shifted, "shift_px"),
    "skin changed": (skin_changed, "skin_delta_e"),
    "hair recoloured": (hair_recoloured, "hair_delta_e"),
    "hair lengthened": (hair_lengthened, "hair_area_ratio"),
    "identity swapped": (identity_swapped, "pair_identity"),
    "nothing changed": (unchanged, "change"),
    "background swapped": (background_swapped, "background_ssim"),
    "turned": (turned, "pose_delta_deg"),
}
