"""Measure one shard of photos or pairs: one row a candidate face, each from the store where it was measured before.

What is measured of a candidate depends on the bytes of its images and masks and on where the face lies; that is the
item's key. What the detector says (angles, embedding) is passed through, so that it costs nothing here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from likeness.config.quality import QualitySettings, QualityStage
from likeness.faces.stage import NOT_LOOKED_FOR, load_checked
from likeness.masks.folder import BY_HAND
from likeness.photos.images import ImageRef
from likeness.photos.load import PhotoError
from likeness.quality import background, body, face, pairs
from likeness.quality.regions import View, scaled_down, scaled_to
from likeness.store import Store, item_key

VERSION = 1
STAGE = "quality"
DIGITS = 6
"""Measures are rounded to so many significant digits, so that other builds of the libraries give equal tables."""

NOT_MEASURED_WITH = ("body_pose", "light_distance", "background_distance")
"""Settings that the item of a photo or pair does not depend on; keypoints are an item of their own."""

NOT_COMPARED_WITH = {
    name: QualitySettings.model_fields[name].default for name in ("sharpness_crop_px", "background_bins")
}
"""Settings that the item of a pair does not depend on either; it is keyed as by their defaults."""

Row = Mapping[str, Any]
Candidates = dict[tuple[str, str], list[Row]]


def body_model_of(stage: QualityStage, store: Store) -> body.BodyModel | None:
    """The configured body model, neither looked for nor loaded yet; None where none is configured."""
    source = stage.quality.body_pose
    return None if source is None else body.BodyModel("quality.body_pose", source, store.root, stage.offline)


def slice_told(stage: QualityStage) -> dict[str, Any]:
    """The settings that a table's metadata tells of: those that its rows depend on."""
    told = stage.model_dump(mode="json", exclude={"offline"}, exclude_unset=True)
    if stage.quality.body_pose is None:
        told["quality"].pop("body_pose", None)
    return told


def candidates_of(faces: Sequence[Row]) -> Candidates:
    """Group the rows of a FACES table that hold a face by photo and role, in the order of the candidates."""
    found: Candidates = defaultdict(list)
    for row in sorted(faces, key=lambda row: (row["id"], row["role"], row["face"] if row["face"] is not None else -1)):
        if row["face"] is not None:
            found[row["id"], row["role"]].append(row)
    return dict(found)


def mask_hashes(masks: Sequence[Row]) -> dict[tuple[str, str, int], dict[str, str]]:
    """Map (photo, role, candidate) to the stored masks on the photo's grid by kind, of the masks that a backend made.

    A mask drawn by hand stands in the table under every kind, but shows what its owner wants to be learned: measures of the
    face would be taken over a whole suit, and those of the background over the body.
    """
    found: dict[tuple[str, str, int], dict[str, str]] = defaultdict(dict)
    for row in masks:
        if row["backend"] == BY_HAND:
            continue
        if row["status"] == "ok" and row["mask_sha256"] is not None and row["face"] is not None:
            found[row["id"], row["role"], row["face"]][row["kind"]] = row["mask_sha256"]
    return dict(found)


def measure_shard(
    images: Sequence[ImageRef],
    faces: Sequence[Row],
    masks: Sequence[Row],
    settings: QualitySettings,
    store: Store,
    load: Callable[[ImageRef], NDArray[np.uint8]] = load_checked,
    body_model: body.BodyModel | None = None,
) -> list[dict[str, Any]]:
    """Measure every candidate of the shard's photos (or of its pairs' targets); one QUALITY row each.

    `body_model` is the one that the settings name (`body_model_of`), None where they name none.

    A photo without a face has one row with face null and status no_face, which still tells of its background; a pair
    without a face is compared as a whole. Where no face was looked for, nothing is measured and the photo is not read.
    """
    assert (settings.body_pose is None) == (body_model is None), "a configured body model is used"
    by_id: dict[str, dict[str, ImageRef]] = defaultdict(dict)
    for image in sorted(images, key=lambda image: image.role):
        by_id[image.id][image.role] = image
    measurer = Measurer(candidates_of(faces), mask_hashes(masks), settings, store, load, body_model)
    unseen = {(row["id"], row["role"]): row for row in faces if row["status"] == NOT_LOOKED_FOR}
    rows: list[dict[str, Any]] = []
    for image in images:
        if image.role not in ("photo", "target"):
            continue
        if (image.id, image.role) in unseen:
            rows.append(row_unmeasured(unseen[image.id, image.role]))
            continue
        measurer.forget()
        source = by_id[image.id].get("source") if image.role == "target" else None
        references = [one for role, one in by_id[image.id].items() if role.startswith("reference")]
        for candidate in measurer.candidates.get((image.id, image.role), [None]):
            rows.append(measurer.row(image, candidate, source, references))
    return rows


def row_unmeasured(face: Row) -> dict[str, Any]:
    """The QUALITY row of a photo in which no face was looked for: what is face and what is behind it, nobody knows."""
    return {"id": face["id"], "face": None, "status": face["status"], "reason": face["reason"]}


class Measurer:
    """Measures candidates, decoding each picture at most once and only when an item is missing."""

    def __init__(
        self,
        candidates: Candidates,
        masks: Mapping[tuple[str, str, int], Mapping[str, str]],
        settings: QualitySettings,
        store: Store,
        load: Callable[[ImageRef], NDArray[np.uint8]],
        body_model: body.BodyModel | None,
    ) -> None:
        self.candidates, self.masks, self.settings, self.store, self.load = candidates, masks, settings, store, load
        self.body_model = body_model
        self.pictures: dict[str, NDArray[np.uint8]] = {}

    def forget(self) -> None:
        """Drop decoded pictures: the next photo needs others."""
        self.pictures.clear()

    def view(self, image: ImageRef, candidate: Row | None) -> View:
        """Decode a picture with the candidate's geometry and masks; raises PhotoError when it cannot be read."""
        if image.path not in self.pictures:
            self.pictures[image.path] = self.load(image)
        picture = self.pictures[image.path]
        if candidate is None:
            return View(picture)
        masks = {kind: decode_mask(self.store.read_blob(sha256)) for kind, sha256 in self.hashes(candidate).items()}
        assert all(mask.shape == picture.shape[:2] for mask in masks.values()), "masks lie on the photo's grid"
        return View(picture, box_of(candidate), landmarks_of(candidate), masks)

    def hashes(self, candidate: Row | None) -> Mapping[str, str]:
        return {} if candidate is None else self.masks.get((candidate["id"], candidate["role"], candidate["face"]), {})

    def content(self, image: ImageRef, candidate: Row | None) -> dict[str, Any]:
        """What the measures of one picture depend on, as JSON."""
        geometry = None if candidate is None else [box_of(candidate), _list(candidate["landmarks"])]
        return {"image": image.sha256, "masks": dict(self.hashes(candidate)), "geometry": geometry}

    def row(
        self, image: ImageRef, candidate: Row | None, source: ImageRef | None, references: Sequence[ImageRef]
    ) -> dict[str, Any]:
        """One QUALITY row; a picture that cannot be read gives a row with the reason."""
        base = {"id": image.id, "face": None if candidate is None else candidate["face"]}
        others = [] if source is None else self.candidates.get((source.id, source.role), [])
        partner = matching_candidate(candidate, others)
        try:
            measures = self.stored("photo", self.content(image, candidate), partial(self.photo, image, candidate))
            measures |= self.framing(image, candidate)
            if source is not None:
                content = {"target": self.content(image, candidate), "source": self.content(source, partner)}
                measures |= self.stored("pair", content, partial(self.pair, image, candidate, source, partner))
        except PhotoError as error:
            return base | {"status": error.status, "reason": str(error)}
        if source is not None:
            measures |= self.identity(candidate, partner, references)
        return base | passed_through(candidate) | measures | status_of(candidate)

    def stored(self, what: str, content: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        how = self.settings.model_dump(mode="json", exclude=set(NOT_MEASURED_WITH))
        how |= NOT_COMPARED_WITH if what == "pair" else {}
        key = item_key(STAGE, VERSION, how, what, content)
        return dict(self.store.load_or_compute(STAGE, key, lambda: (compute(), {})).record)

    def photo(self, image: ImageRef, candidate: Row | None) -> dict[str, Any]:
        """Measure one picture by itself."""
        view = self.view(image, candidate)
        return photo_measures(view, self.settings)

    def framing(self, image: ImageRef, candidate: Row | None) -> dict[str, str]:
        """Framing by body keypoints; nothing without a body model or a face, or where the model sees nobody."""
        model = self.body_model
        if model is None or candidate is None:
            return {}

        def compute() -> tuple[dict[str, Any], dict[str, bytes]]:
            view = self.view(image, candidate)
            found = model.keypoints(view.image_HWC, body.person_box(view))
            record = {"points": found.points_K2.tolist(), "scores": found.scores_K.tolist()}
            return rounded(record) | {"size_px": list(view.size)}, {}

        content = {"image": image.sha256, "person": self.hashes(candidate).get("person")}
        key = item_key(body.STAGE, body.VERSION, None, model.fingerprint, content)
        record = self.store.load_or_compute(body.STAGE, key, compute).record
        found = body.Keypoints(np.array(record["points"], np.float64), np.array(record["scores"], np.float64))
        framing = body.framing_by_keypoints(found, *record["size_px"])
        return {} if framing is None else {"framing": framing, "framing_by": "body keypoints"}

    def pair(self, target: ImageRef, candidate: Row | None, source: ImageRef, partner: Row | None) -> dict[str, Any]:
        """Compare a target with its source on the target's grid, scaled down to the working size."""
        after = scaled_down(self.view(target, candidate), self.settings.working_side_px)
        before = scaled_to(self.view(source, partner), *after.size)
        return rounded(pairs.pixel_measures(before, after))

    def identity(self, candidate: Row | None, partner: Row | None, references: Sequence[ImageRef]) -> dict[str, Any]:
        """Compare pose with the source, and identity with the reference that shows a face, else with the source."""
        if candidate is None:
            return {}
        faces = [found[0] for image in references if (found := self.candidates.get((image.id, image.role)))]
        known = faces[0] if faces else partner
        same_kind = known is not None and known["embedding_kind"] == candidate["embedding_kind"]
        pose = None if partner is None else pairs.pose_delta_deg(angles_of(partner), angles_of(candidate))
        cosine = pairs.cosine(known["embedding"], candidate["embedding"]) if known is not None and same_kind else None
        return rounded({"pose_delta_deg": pose, "pair_identity": cosine})


def photo_measures(view: View, settings: QualitySettings) -> dict[str, Any]:
    """All measures of one picture by itself, by column name; face measures are null without a face."""
    crop = face.face_crop(view, settings.sharpness_crop_px)
    small = scaled_down(view, settings.working_side_px)
    fraction = view.face_height_px / view.size[0] if view.box is not None else None
    return rounded(
        {
            "sharpness": None if crop is None else face.sharpness(crop),
            "brightness": face.brightness(small),
            "clipped": face.clipped_share(small),
            "face_px": None if view.box is None else view.face_height_px,
            "face_fraction": fraction,
            "framing": None if fraction is None else face.framing_by_face_ratio(fraction),
            "framing_by": None if fraction is None else "face ratio",
            "light": face.light_word(small),
            "light_features": face.light_features(small),
            "background": None if view.box is None else background.background_colour(small),
            "background_histogram": background.background_histogram(small, settings.background_bins),
        }
    )


def decode_mask(png: bytes) -> NDArray[np.bool_]:
    """Decode a stored mask, True inside."""
    mask_HW = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert mask_HW is not None, "stored masks are PNG"
    return mask_HW > 127


def passed_through(candidate: Row | None) -> dict[str, Any]:
    """What the detector found, under the names of the QUALITY table."""
    if candidate is None:
        return {}
    return {
        "pose": face.pose_of(candidate["yaw_deg"]),
        "embedding": candidate["embedding"],
        **{name: candidate[name] for name in ("yaw_deg", "pitch_deg", "roll_deg")},
    }


def status_of(candidate: Row | None) -> dict[str, str]:
    return {"status": "no_face", "reason": "no face was found"} if candidate is None else {"status": "ok", "reason": ""}


def angles_of(candidate: Row) -> list[float | None]:
    """Yaw, pitch and roll in degrees, None where unknown."""
    return [candidate[name] for name in ("yaw_deg", "pitch_deg", "roll_deg")]


def box_of(candidate: Row) -> tuple[float, float, float, float]:
    return candidate["x0"], candidate["y0"], candidate["x1"], candidate["y1"]


def landmarks_of(candidate: Row) -> NDArray[np.float64] | None:
    """Five points (x, y) in px, or None where the detector gave none."""
    points = _list(candidate["landmarks"])
    return np.asarray(points, np.float64).reshape(5, 2) if points and len(points) == 10 else None


def matching_candidate(candidate: Row | None, others: Sequence[Row]) -> Row | None:
    """The source's face that lies where the target's lies (boxes as shares of their pictures), else its first face."""
    if candidate is None or not others:
        return None

    def overlap(other: Row) -> float:
        boxes = [
            np.array(box_of(row)) / np.array([row["image_width_px"], row["image_height_px"]] * 2)
            for row in (candidate, other)
        ]
        low, high = np.maximum(boxes[0][:2], boxes[1][:2]), np.minimum(boxes[0][2:], boxes[1][2:])
        shared = float(np.prod(np.maximum(high - low, 0)))
        areas = [float(np.prod(box[2:] - box[:2])) for box in boxes]
        return shared / max(areas[0] + areas[1] - shared, 1e-12)

    return max(others, key=lambda other: (overlap(other), -other["face"]))


def rounded(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Round floats, and lists of floats, to DIGITS significant digits; NaN and infinities become null."""

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return [one(entry) for entry in value]
        if isinstance(value, float | np.floating):
            return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
        return value

    return {name: one(value) for name, value in measures.items()}


def _list(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in values]
