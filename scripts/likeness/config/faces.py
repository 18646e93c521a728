"""Settings of the faces stage: detector, embedding, crop."""

from __future__ import annotations

from pydantic import Field

from likeness.config.base import ModelChoice, Settings

NO_DETECTOR = "none"
"""The backend of a style's pictures that need not show people: faces are not looked for."""


class CropSettings(Settings):
    """How a face is cut out; crops serve embeddings, identity and the references of swaps, never training alone."""

    padding: float = Field(
        default=0.45,
        ge=0,
        le=2,
        description="Margin on each side as a share of the face box: 0.45 face swap, 0.9 head swap.",
    )
    eyes_horizontal: bool = Field(default=False, description="Rotate the crop so that the eyes are level.")
    min_pixels: int = Field(
        default=512, ge=16, description="Smallest crop side in real (not enlarged) pixels of the photo, in px."
    )
    size_px: int = Field(
        default=512,
        ge=32,
        le=4096,
        description="Side of the square crop that is written, in px; never enlarged beyond the photo's pixels.",
    )


class FaceSettings(Settings):
    """Which detector finds faces and what counts as one."""

    backend: str = Field(
        default="insightface",
        description="insightface, yolo or opencv, a name that an installed package registers, or none (style only): "
        "no face is looked for.",
    )
    model: ModelChoice = Field(
        default={"source": "buffalo_l"}, description="insightface pack (name or folder), or YOLO face weights."
    )  # type: ignore[arg-type]
    recogniser: ModelChoice | None = Field(default=None, description="ArcFace ONNX for the yolo backend's embeddings.")
    detection_size_px: int = Field(
        default=640, ge=32, le=2048, description="Side of the square that the detector sees, in px."
    )
    min_score: float = Field(default=0.5, ge=0, le=1, description="Detections below this score are not faces.")
    max_faces: int = Field(default=8, ge=1, le=64, description="Most candidate faces kept a photo.")
    crop: CropSettings = CropSettings()
    min_identity: float = Field(
        default=0.35,
        ge=-1,
        le=1,
        description="Cosine to the subject below which a face is another person; belongs to the model, so set it with `model`.",
    )


class FaceStage(Settings):
    """The slice that detect_faces reads."""

    faces: FaceSettings
    offline: bool = True
    cpu_threads: int = 1


class FaceMerge(Settings):
    """The slice that merge_faces reads: the subject's face is nearest to a reference photo, else to the set's medoid."""

    faces: FaceSettings
    kind: str
    references: tuple[str, ...] = ()
    offline: bool = True
