"""Identity metrics: arithmetic on embeddings that the recogniser made, and on face boxes.

The reference is the mean of unit embeddings, scaled to length 1 again. A character's is made of its held-out and
reference photos; an edit's identity is that of the face reference (the second reference) or else of the source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from likeness.evaluation.metrics.registry import Measured, metric, not_measured

if TYPE_CHECKING:
    from likeness.evaluation.sample import Sample

NO_FACE = "no_face"
REFERENCE = "the subject's held-out photos; edit: the face reference, else the source"


def cosine_to_reference(sample: Sample) -> Measured:
    """Cosine of the image's face to the reference, whatever made the embeddings."""
    if sample.reference_D is None:
        return not_measured("no_reference: no face was found in the photos to compare with")
    face = sample.face
    if face is None or face.embedding_D is None:
        return not_measured(NO_FACE)
    return Measured(float(np.dot(face.embedding_D.astype(np.float64), sample.reference_D)))


def by_recogniser(sample: Sample) -> Measured:
    if not sample.has_recogniser:
        absent = sample.recogniser.status
        return not_measured(
            absent if absent != "ok" else f"no_weights: a recogniser; {sample.embedding_kind} is a descriptor"
        )
    return cosine_to_reference(sample)


def normalised(sample: Sample) -> Measured:
    """csim on the scale where the impostor level is 0 and the genuine level is 1."""
    if sample.recipe == "edit":
        return not_measured("not_applicable: an edit's pairs show many people, so there is no genuine level")
    found = by_recogniser(sample)
    genuine, impostor = sample.calibration.get("genuine"), sample.calibration.get("impostor")
    if found.value is None:
        return found
    if genuine is None or impostor is None:
        count = sample.calibration.get("n_genuine", 0)
        return not_measured(
            f"too_few: {count} genuine photos and {sample.calibration.get('n_impostor', 0)} impostor images; 3 and 1 are needed"
        )
    if genuine - impostor < 0.05:
        return not_measured("not_separable: the recogniser does not tell the subject from the base model's people")
    return Measured((found.value - impostor) / (genuine - impostor))


@metric("detected", unit="0 or 1", against="nothing", group="derived", kinds=("subject", "bleed"))
def detected(sample: Sample) -> Measured:
    """Whether the recogniser's detector finds a face."""
    return Measured(0.0 if sample.face is None else 1.0)


@metric("csim", unit="cosine, -1..1", against=REFERENCE, group="derived")
def csim(sample: Sample) -> Measured:
    """Cosine of the face's embedding to the reference, by the configured recogniser."""
    return by_recogniser(sample)


@metric("descriptor_cosine", unit="cosine, -1..1", against=REFERENCE, group="derived")
def descriptor_cosine(sample: Sample) -> Measured:
    """Cosine of a hand-made face descriptor; stands in where there is no recogniser, and is no identity score."""
    if sample.has_recogniser:
        return not_measured("not_applicable: a recogniser is configured, see csim")
    return cosine_to_reference(sample)


@metric("likeness", unit="0 impostor, 1 genuine", against="genuine and impostor levels", group="derived")
def likeness(sample: Sample) -> Measured:
    """csim on the scale from the impostor level (0) to the genuine level (1)."""
    return normalised(sample)


@metric(
    "bleed_csim",
    unit="0 impostor, 1 genuine",
    against="as likeness",
    group="derived",
    kinds=("bleed",),
)
def bleed_csim(sample: Sample) -> Measured:
    """Likeness of an image drawn without the trigger."""
    found = normalised(sample)
    return Measured(0.0) if found.status == NO_FACE else found


@metric("copying", unit="cosine", against="training photos and held-out photos", group="derived")
def copying(sample: Sample) -> Measured:
    """Cosine to the nearest training photo minus the mean cosine to the held-out ones."""
    if sample.recipe == "edit":
        return not_measured("not_applicable: an edit is drawn from its source")
    found = by_recogniser(sample)
    if found.value is None:
        return found
    if sample.training_ND is None or sample.held_out_ND is None:
        return not_measured("no_reference: no face in the training photos, or none held out")
    assert sample.face is not None and sample.face.embedding_D is not None
    embedding_D = sample.face.embedding_D.astype(np.float64)
    return Measured(float((sample.training_ND @ embedding_D).max() - (sample.held_out_ND @ embedding_D).mean()))


@metric(
    "head_ratio",
    unit="ratio",
    against="the median of the subject's photos; edit: the source",
    group="derived",
)
def head_ratio(sample: Sample) -> Measured:
    """Head size (face height over shoulder width, or over frame height without body keypoints) over the photos'."""
    if sample.face is None:
        return not_measured(NO_FACE)
    if not sample.photo_head_size:
        return not_measured("no_reference: no head was measured in the photos to compare with")
    size = sample.head_size
    return (
        not_measured("no_body: shoulders were not found") if size is None else Measured(size / sample.photo_head_size)
    )
