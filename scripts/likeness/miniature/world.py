"""The drawn world: people whose identity, pose, light, background and clothes are known by construction.

Shapes are signed distances turned into coverage, painted back to front over a whole batch at once, so that a picture
means the same at 16 px and at 512 px and every mask, landmark and box is exact. Nothing here needs torch.

Axes: N people, D identity parameters, H rows, W columns, C colour channels. Lengths inside a drawing are in face units:
half of the nominal face height, so that the chin of an average face is 1 below the face's centre. Pixel coordinates
have their origin at the upper left corner of the picture: the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likeness.miniature.scenes import (
    BACKGROUND_NAMES,
    EYES,
    HAIR,
    IDENTITY_FIELDS,
    SKIN,
    Scene,
    facts_of,
    sample_identities,
    sample_scenes,
)

__all__ = [
    "BACKGROUND_NAMES",
    "IDENTITY_FIELDS",
    "Rendered",
    "Scene",
    "facts_of",
    "render",
    "render_group",
    "sample_identities",
    "sample_scenes",
]

Array = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Rendered:
    """Pictures and their truth.

    images_NHWC: float32, 0..1. face_NHW (visible skin oval with its features), head_NHW (face, ears and hair),
    person_NHW (head and body): bool. landmarks_N52: px (x, y), the eye at the viewer's left, the other eye, nose,
    left mouth corner, right one (insightface's order). boxes_N4: px left, top, right, bottom of the skin oval, within the picture.
    """

    images_NHWC: Array
    face_NHW: Mask
    head_NHW: Mask
    person_NHW: Mask
    landmarks_N52: Array
    boxes_N4: Array


def render(identities: NDArray, scene: Scene, height_px: int, width_px: int) -> Rendered:
    """Draw each person alone in its scene; identities (N, D) must be as many as the scenes."""
    assert len(identities) == len(scene), "one identity a scene"
    painter = _Painter(identities, scene, height_px, width_px)
    painter.paint_person()
    backdrop = _backdrop(scene, painter)
    images = backdrop * (1 - painter.person[:, None]) + painter.lit_layer()
    return _rendered(painter, images)


def render_group(identities: NDArray, scene: Scene, height_px: int, width_px: int) -> Rendered:
    """Draw all people in one picture, larger (nearer) ones in front; the backdrop is that of the first scene.

    images_NHWC has one picture; masks (what is visible), landmarks and boxes have one row a person in the given order.
    """
    assert len(identities) == len(scene), "one identity a scene"
    painter = _Painter(identities, scene, height_px, width_px)
    painter.paint_person()
    image = _backdrop(scene, painter)[:1]
    lit = painter.lit_layer()
    for k in np.argsort(scene.scale, kind="stable"):
        cover = painter.person[k].copy()
        image = image * (1 - cover) + lit[k]
        for other in np.flatnonzero(scene.scale < scene.scale[k]):
            for mask in (painter.face, painter.head, painter.person):
                mask[other] *= 1 - cover
    return _rendered(painter, image)


def _rendered(painter: _Painter, images: Array) -> Rendered:
    clipped = np.clip(images, 0, 1).transpose(0, 2, 3, 1)
    return Rendered(
        images_NHWC=np.ascontiguousarray(clipped, dtype=np.float32),
        face_NHW=painter.face > 0.5,
        head_NHW=painter.head > 0.5,
        person_NHW=painter.person > 0.5,
        landmarks_N52=painter.landmarks(),
        boxes_N4=painter.boxes(),
    )


def _backdrop(scene: Scene, painter: _Painter) -> Array:
    """Paint the backgrounds, (N, 3, H, W): the colour, a faint pattern, and a little of the light."""
    height, width = painter.height_px, painter.width_px
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[None, :, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, None, :]
    pattern = scene.pattern[:, None, None]
    stripes = np.clip(np.sin(2 * np.pi * 5 * (x + 0.35 * y)) * 3, -1, 1)
    discs = np.clip(3 * (np.sin(2 * np.pi * 3 * x) * np.sin(2 * np.pi * 3 * y) - 0.3), -1, 1)
    shade = np.select([pattern == 1, pattern == 2, pattern == 3], [1 - 2 * y + 0 * x, stripes, discs], 0.0)
    side = (scene.light_direction * scene.light_strength)[:, None, None] * (2 * x - 1)
    factor = (1 + 0.06 * shade + 0.10 * side) * (0.35 + 0.65 * scene.brightness[:, None, None])
    warmth = _warmth(scene) ** 0.5
    return (scene.background_rgb[:, :, None, None] * warmth[:, :, None, None] * factor[:, None]).astype(np.float32)


def _warmth(scene: Scene) -> NDArray:
    t = scene.light_temperature
    return np.stack([1 + 0.12 * t, np.ones_like(t), 1 - 0.15 * t], 1)


class _Painter:
    """A transparent layer a person, with the true coverage of face, head and person; all arrays have the axis N first."""

    def __init__(self, identities: NDArray, scene: Scene, height_px: int, width_px: int) -> None:
        self.scene, self.height_px, self.width_px = scene, height_px, width_px
        self.identity = identities.astype(np.float32)
        n = len(scene)
        self.layer = np.zeros((n, 3, height_px, width_px), np.float32)
        self.person = np.zeros((n, height_px, width_px), np.float32)
        self.head = np.zeros_like(self.person)
        self.face = np.zeros_like(self.person)
        self.unit_px = _column(scene.scale * height_px / 2)
        self.centre_x_px = _column(scene.centre_x * width_px)
        self.centre_y_px = _column(scene.centre_y * height_px)
        self.rows, self.columns = slice(0, height_px), slice(0, width_px)
        self.x, self.y = self._grid(upright=True)

    def trait(self, name: str) -> Array:
        """Return one identity parameter as (N, 1, 1)."""
        return _column(self.identity[:, IDENTITY_FIELDS.index(name)])

    def _grid(self, upright: bool) -> tuple[Array, Array]:
        """Return x and y of the window's pixels in face units, turned with the head unless upright."""
        dx = (
            np.arange(self.columns.start, self.columns.stop, dtype=np.float32) + 0.5 - self.centre_x_px
        ) / self.unit_px
        dy = (
            np.arange(self.rows.start, self.rows.stop, dtype=np.float32)[:, None] + 0.5 - self.centre_y_px
        ) / self.unit_px
        if upright:
            return dx, dy
        roll = _column(np.deg2rad(self.scene.roll_deg))
        return dx * np.cos(roll) + dy * np.sin(roll), dy * np.cos(roll) - dx * np.sin(roll)

    def look_at_head(self) -> None:
        """Shrink the window to where any head of the batch can be, and turn it with the head: features then cost little."""
        reach = 2.6 * self.unit_px
        low_x, high_x = np.min(self.centre_x_px - reach), np.max(self.centre_x_px + reach)
        low_y, high_y = np.min(self.centre_y_px - reach), np.max(self.centre_y_px + reach)
        self.columns = slice(max(0, int(low_x)), min(self.width_px, int(high_x) + 2))
        self.rows = slice(max(0, int(low_y)), min(self.height_px, int(high_y) + 2))
        self.x, self.y = self._grid(upright=False)

    def put(
        self, distance: Array, rgb: NDArray, part: str, presence: Array | float = 1.0, thickness: Array | None = None
    ) -> None:
        """Paint a shape: distance in face units, negative inside; part is body, head or face; a thickness (face units) makes a line."""
        window = (slice(None), self.rows, self.columns)
        if thickness is None:
            cover = np.clip(0.5 - distance * self.unit_px, 0, 1)
        else:
            width_px = thickness * self.unit_px
            cover = np.clip(width_px / 2 + 0.5 - np.abs(distance) * self.unit_px, 0, np.minimum(1, width_px))
        cover = (cover * presence).astype(np.float32)
        colour = np.broadcast_to(np.asarray(rgb, np.float32), (len(self.scene), 3))
        for channel in range(3):
            target = self.layer[:, channel, self.rows, self.columns]
            target += cover * (_column(colour[:, channel]) - target)
        for mask, inside in ((self.person, 1.0), (self.head, part != "body"), (self.face, part == "face")):
            mask[window] += cover * (np.float32(inside) - mask[window])

    def ellipse(self, x: Array | float, y: Array | float, radius_x: Array | float, radius_y: Array | float) -> Array:
        """Return the distance to an ellipse in face units, right to first order at its edge."""
        dx, dy = (self.x - x) / radius_x, (self.y - y) / radius_y
        level = np.sqrt(dx * dx + dy * dy)
        slope = np.sqrt((dx / radius_x) ** 2 + (dy / radius_y) ** 2)
        return (level + 1e-4) * (level - 1) / (slope + 1e-4 / np.minimum(radius_x, radius_y))

    def capsule(self, start: tuple[float, float], end: tuple[float, float], radius: float) -> Array:
        """Return the distance to a thick line with round ends."""
        (x0, y0), (x1, y1) = start, end
        along = ((self.x - x0) * (x1 - x0) + (self.y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
        along = np.clip(along, 0, 1)
        return np.hypot(self.x - x0 - along * (x1 - x0), self.y - y0 - along * (y1 - y0)) - radius

    def rounded_box(self, y: float, half_width: float, half_height: float, radius: float) -> Array:
        """Return the distance to a box around x = 0 with round corners."""
        dx, dy = np.abs(self.x) - half_width + radius, np.abs(self.y - y) - half_height + radius
        return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - radius

    def on_face(self, x: Array | float, y: Array | float) -> Array:
        """Return where a point of the frontal face comes to lie when the head turns; x as a share of the face's width at that height."""
        half_width = self.trait("face_width") * np.sqrt(np.maximum(0.05, 1 - (y / self.trait("face_height")) ** 2))
        yaw = _column(np.deg2rad(self.scene.yaw_deg))
        return (0.92 * half_width * np.sin(np.arcsin(np.clip(x, -0.98, 0.98)) + 0.9 * yaw)).astype(np.float32)

    def paint_person(self) -> None:
        """Paint back to front: body, hair behind, neck, ears, face, features, fringe."""
        self._paint_body()
        self.look_at_head()
        self._paint_hair_behind()
        self._paint_neck()
        self._paint_face()
        self._paint_eyes()
        self._paint_mouth()
        self._paint_fringe()
        self._paint_glasses()

    def _paint_body(self) -> None:
        skin, clothes = self.identity[:, SKIN], self.scene.clothes_rgb
        trousers = 0.12 + 0.30 * clothes[:, [2, 0, 1]]
        if float(np.max((self.height_px - self.centre_y_px) / self.unit_px)) > 4:
            for side in (-1, 1):
                self.put(self.capsule((side * 0.5, 4.9), (side * 0.62, 10.2), 0.47), trousers, "body")
                self.put(self.ellipse(side * 0.78, 10.75, 0.62, 0.30), np.array([0.12, 0.10, 0.10]), "body")
                self.put(self.ellipse(side * 1.80, 5.15, 0.27, 0.36), skin, "body")
        for side in (-1, 1):
            self.put(self.capsule((side * 1.22, 2.0), (side * 1.78, 4.8), 0.36), clothes * 0.86, "body")
        self.put(self.rounded_box(3.35, 1.32, 1.95, 0.62), clothes, "body")

    def _paint_hair_behind(self) -> None:
        width, height, length = self.trait("face_width"), self.trait("face_height"), self.trait("hair_length")
        shift = -0.10 * _column(np.sin(np.deg2rad(self.scene.yaw_deg)))
        hair = self.identity[:, HAIR]
        self.put(self.ellipse(shift, -0.22, width + 0.20, height + 0.02), hair, "head")
        middle, half = 0.15 + 0.55 * length, 0.55 + 0.75 * length
        self.put(
            self.ellipse(shift, middle, width + 0.16 + 0.16 * length, half),
            hair * 0.86,
            "head",
            presence=length > 0.2,
        )

    def _paint_neck(self) -> None:
        skin = self.identity[:, SKIN]
        self.put(self.ellipse(0, 1.42, 0.62, 0.34), skin * 0.92, "body")
        self.put(self.capsule((0, 0.6), (0, 1.45), 0.36), skin * 0.80, "body")

    def _paint_face(self) -> None:
        skin, width, height = self.identity[:, SKIN], self.trait("face_width"), self.trait("face_height")
        turn = _column(np.sin(np.deg2rad(self.scene.yaw_deg)))
        for side in (-1, 1):
            self.put(
                self.ellipse(side * width - 0.12 * turn, 0.02, 0.13, 0.22),
                skin * 0.90,
                "head",
                presence=side * turn < 0.25,
            )
        oval = self.ellipse(0, 0, width, height)
        self.put(oval, skin, "face")
        beard = np.maximum(oval, self.ellipse(0.12 * turn, -0.30, width * 0.90, 0.78) * -1)
        self.put(np.maximum(beard, 0.10 - self.y), self.identity[:, HAIR] * 0.82, "face", presence=self.trait("beard"))
        cheeks = np.clip(skin * np.array([1.06, 0.86, 0.86]), 0, 1)
        for side in (-1, 1):
            blush = self.ellipse(self.on_face(side * 0.58, 0.32), 0.32, 0.17, 0.12)
            self.put(blush, cheeks, "face", presence=0.7 * (1 - self.trait("beard")))
        self.put(self.ellipse(self.on_face(0.0, 0.10), 0.10, 0.075, 0.22), skin * 0.84, "face")
        self.put(self.ellipse(self.on_face(0.0, 0.24), 0.25, 0.13, 0.09), skin * 0.78, "face")

    def _eye_positions(self) -> list[tuple[Array, float]]:
        return [(self.on_face(side * self.trait("eye_spacing"), -0.12), -0.12) for side in (-1, 1)]

    def _paint_eyes(self) -> None:
        size, brow = self.trait("eye_size"), self.identity[:, HAIR] * 0.65
        for x, y in self._eye_positions():
            self.put(self.ellipse(x, y, size * 1.85, size * 1.30), np.array([0.97, 0.97, 0.96]), "face")
            gaze = x + 0.25 * size * _column(np.sin(np.deg2rad(self.scene.yaw_deg)))
            self.put(self.ellipse(gaze, y, size * 1.05, size * 1.15), self.identity[:, EYES], "face")
            self.put(self.ellipse(gaze, y, size * 0.5, size * 0.55), np.array([0.03, 0.03, 0.04]), "face")
            arch = np.maximum(np.abs(self.x - x) - 0.24, np.abs(self.y - y + 0.30 - 0.7 * (self.x - x) ** 2) - 0.045)
            self.put(arch, brow, "face")

    def _mouth(self) -> tuple[Array, Array, Array]:
        """Return x of both corners, (N, 1, 1) each, and how far the corners lie above the middle, in face units."""
        half = self.trait("mouth_width")
        rise = 0.17 * _column(self.scene.smile)
        stretch = 1 + 0.12 * _column(np.maximum(self.scene.smile, 0))
        return self.on_face(-half * stretch, 0.52), self.on_face(half * stretch, 0.52), rise

    def _paint_mouth(self) -> None:
        left, right, rise = self._mouth()
        middle, half = (left + right) / 2, (right - left) / 2
        across = (self.x - middle) / half
        curve = 0.56 + rise * (0.5 - across**2)
        ends = (np.abs(across) - 1) * half
        open_by = np.clip(_column(self.scene.smile), 0, 1) * 0.15 * np.maximum(0, 1 - across**2)
        lips = np.array([0.66, 0.20, 0.22])
        self.put(np.maximum(np.abs(self.y - curve) - 0.055 - open_by * 0.75, ends), lips, "face")
        teeth = np.maximum(np.abs(self.y - curve) - open_by * 0.62, ends + 0.04)
        self.put(teeth, np.array([0.98, 0.97, 0.95]), "face", presence=_column(self.scene.smile) > 0.15)

    def _paint_fringe(self) -> None:
        width, height = self.trait("face_width"), self.trait("face_height")
        turn = _column(np.sin(np.deg2rad(self.scene.yaw_deg)))
        cap = self.ellipse(0, -0.06, width + 0.10, height + 0.08)
        opening = self.ellipse(0.30 * turn, 0.22, width * 0.95, 0.80)
        self.put(np.maximum(np.maximum(cap, -opening), self.y + 0.25), self.identity[:, HAIR], "head")

    def _paint_glasses(self) -> None:
        frame, dark = 0.055, np.array([0.06, 0.06, 0.08])
        present, line = self.trait("glasses"), np.full((1, 1, 1), frame, np.float32)
        eyes = self._eye_positions()
        for x, y in eyes:
            self.put(self.ellipse(x, y, 0.24, 0.21), dark, "face", presence=present, thickness=line)
        bridge = np.maximum(
            np.abs(self.y - eyes[0][1]) - frame / 2, np.maximum(eyes[0][0] + 0.24 - self.x, self.x - eyes[1][0] + 0.24)
        )
        self.put(bridge, dark, "face", presence=present)

    def lit_layer(self) -> Array:
        """Return the layer under the scene's light, (N, 3, H, W), already multiplied by the person's coverage."""
        dx = (np.arange(self.width_px, dtype=np.float32) + 0.5 - self.centre_x_px) / self.unit_px
        side = _column(self.scene.light_direction * self.scene.light_strength) * np.clip(dx / 0.9, -1, 1)
        factor = (
            (1 + 0.62 * np.minimum(side, 0) + 0.22 * np.maximum(side, 0)) * _column(self.scene.brightness)
        ).astype(np.float32)
        return self.layer * factor[:, None] * _warmth(self.scene).astype(np.float32)[:, :, None, None]

    def _to_pixels(self, x: NDArray, y: NDArray) -> NDArray:
        """Turn points of the head, (N, K) in face units, to px, (N, K, 2)."""
        roll = np.deg2rad(self.scene.roll_deg)[:, None]
        unit, cx, cy = self.unit_px[:, :, 0], self.centre_x_px[:, :, 0], self.centre_y_px[:, :, 0]
        return np.stack(
            [cx + unit * (x * np.cos(roll) - y * np.sin(roll)), cy + unit * (x * np.sin(roll) + y * np.cos(roll))], -1
        )

    def landmarks(self) -> Array:
        """Return the five landmarks, (N, 5, 2) px."""
        (left_eye, eye_y), (right_eye, _) = self._eye_positions()
        left, right, rise = self._mouth()
        corner_y = 0.56 - rise / 2
        nose = self.on_face(0.0, 0.24)
        x = np.concatenate([left_eye, right_eye, nose, left, right], 1)[:, :, 0]
        one = np.ones_like(left_eye)
        y = np.concatenate([eye_y * one, eye_y * one, 0.25 * one, corner_y * one, corner_y * one], 1)[:, :, 0]
        return self._to_pixels(x, y).astype(np.float32)

    def boxes(self) -> Array:
        """Return the boxes of the skin ovals, (N, 4) px: left, top, right, bottom, cut at the picture's border."""
        roll = np.deg2rad(self.scene.roll_deg)
        width, height = self.trait("face_width")[:, 0, 0], self.trait("face_height")[:, 0, 0]
        half_x = np.hypot(width * np.cos(roll), height * np.sin(roll)) * self.unit_px[:, 0, 0]
        half_y = np.hypot(width * np.sin(roll), height * np.cos(roll)) * self.unit_px[:, 0, 0]
        cx, cy = self.centre_x_px[:, 0, 0], self.centre_y_px[:, 0, 0]
        boxes = np.stack([cx - half_x, cy - half_y, cx + half_x, cy + half_y], 1)
        limit = np.array([self.width_px, self.height_px, self.width_px, self.height_px])
        return np.clip(boxes, 0, limit).astype(np.float32)


def _column(values: NDArray) -> Array:
    return np.asarray(values, np.float32).reshape(-1, 1, 1)
