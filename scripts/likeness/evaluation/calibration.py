"""The subject's photos in the recogniser's space: the reference, and what genuine and impostor scores look like.

Genuine is how the subject's own photos score against the same reference that images are scored against, each photo
left out of its own comparison; impostor is how the bare base model's people score, drawn from the select half's prompts
with and without the trigger. With fewer than 3 genuine photos there is no genuine level, and `likeness` is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likeness.evaluation.models import Models
from likeness.evaluation.pictures import Pictures
from likeness.evaluation.recognise import Recogniser, mean_direction
from likeness.evaluation.sample import Subject, head_size
from likeness.faces.subject import choose_subjects

LEAST_GENUINE = 3
Embeddings = NDArray[np.float64]


def subject_of_photos(
    about: Subject,
    held_out: Sequence[str],
    training: Sequence[str],
    pictures: Pictures,
    recogniser: Recogniser,
    models: Models,
) -> Subject:
    """Add the photos' embeddings and head size to a subject; `held_out` and `training` are photos' sha256.

    The reference is made of the held-out photos, or of the training photos where none with a face is held out. In a photo
    of several people the face counts that the whole set shows, not the largest one.
    """
    found = {
        sha256: recogniser.faces(sha256, _loader(pictures, sha256)) for sha256 in dict.fromkeys([*held_out, *training])
    }
    faces = subject_faces(found, recogniser.settings.min_identity)
    held_out_ND = _stack([faces[sha256] for sha256 in held_out])
    training_ND = _stack([faces[sha256] for sha256 in training if sha256 not in held_out])
    reference_ND = held_out_ND if held_out_ND is not None else training_ND
    measured = [
        head_size(models, sha256, _loader(pictures, sha256), face) for sha256, face in faces.items() if face is not None
    ]
    sizes = [size for size in measured if size is not None]
    return Subject(
        recipe=about.recipe,
        trigger=about.trigger,
        class_word=about.class_word,
        reference_D=None if reference_ND is None else mean_direction(reference_ND),
        held_out_ND=held_out_ND,
        training_ND=training_ND,
        photo_head_size=float(np.median(sizes)) if sizes else None,
        photo_sha256s=tuple(held_out or training),
    )


def subject_faces(faces: Mapping[str, Sequence[Any]], min_identity: float) -> dict[str, Any | None]:
    """The subject's face in each photo (by sha256), or None where there is none; faces as the recogniser orders them.

    min_identity: cosine from which a face counts towards the direction of the set, to which the subject's is nearest.
    """
    rows = [
        {
            "id": sha256,
            "face": number,
            "embedding": None if face.embedding_D is None else face.embedding_D.tolist(),
            "status": "ok",
            "reason": "",
        }
        for sha256, found in faces.items()
        for number, face in enumerate(found)
    ]
    chosen = {row["id"]: row["face"] for row in choose_subjects(rows, None, min_identity) if row["is_subject"]}
    return {sha256: found[chosen[sha256]] if sha256 in chosen else None for sha256, found in faces.items()}


def calibration_of(subject: Subject, impostors_ND: Embeddings | None, recogniser: Recogniser) -> dict[str, Any]:
    """Content of calibration.json: {genuine, impostor, n_genuine, n_impostor, recogniser}; a level is null without numbers."""
    genuine = genuine_cosines(subject.held_out_ND, subject.training_ND)
    impostor: list[float] = []
    if impostors_ND is not None and subject.reference_D is not None:
        impostor = [float(value) for value in impostors_ND @ subject.reference_D]
    return {
        "genuine": float(np.mean(genuine)) if len(genuine) >= LEAST_GENUINE else None,
        "impostor": float(np.mean(impostor)) if impostor else None,
        "n_genuine": len(genuine),
        "n_impostor": len(impostor),
        "recogniser": recogniser.name,
    }


def genuine_cosines(held_out_ND: Embeddings | None, training_ND: Embeddings | None) -> list[float]:
    """Cosine of each photo to the reference made without it, over all photos that have one."""
    if held_out_ND is None:
        return leave_one_out(training_ND) if training_ND is not None else []
    own = leave_one_out(held_out_ND)
    reference_D = mean_direction(held_out_ND)
    if training_ND is None or reference_D is None:
        return own
    return own + [float(value) for value in training_ND @ reference_D]


def leave_one_out(embeddings_ND: Embeddings) -> list[float]:
    """Cosine of each embedding to the mean direction of all others; empty for a single one."""
    found: list[float] = []
    for index in range(len(embeddings_ND)):
        others_D = mean_direction(np.delete(embeddings_ND, index, axis=0))
        if others_D is not None:
            found.append(float(embeddings_ND[index] @ others_D))
    return found


def _stack(faces: Sequence[Any]) -> Embeddings | None:
    found = [face.embedding_D.astype(np.float64) for face in faces if face is not None and face.embedding_D is not None]
    return np.stack(found) if found else None


def _loader(pictures: Pictures, sha256: str):
    return lambda: pictures.photo(sha256)
