"""Settings of the regularisation set: pictures of the class, on which a training keeps what the model already knows."""

from __future__ import annotations

from pydantic import Field

from likeness.config.base import ModelSource, Settings
from likeness.config.photos import PhotoFolders, PhotoSettings
from likeness.config.placeholders import CaptionText


class RegularisationSettings(Settings):
    """Pictures of the class and never of the subject; trainings with losses.prior_preservation read them, all of them.

    They are no candidates of the phases: neither faces nor quality are looked at.
    """

    photos: PhotoFolders = Field(default_factory=list, description="Folders of photos of the class.")
    drawn: int = Field(
        default=0,
        ge=0,
        le=2000,
        description="Pictures of the class that the base model draws, once and for all trainings.",
    )
    caption: CaptionText = Field(
        default="a photo of a {class_word}",
        min_length=1,
        description="Caption of all of them, and what the drawn ones show; {class_word} is the subject's.",
    )
    size_px: int = Field(default=1024, ge=16, le=4096, description="Side of the drawn pictures, in px.")
    sampling_steps: int = Field(default=20, ge=1, le=100, description="Denoising steps of a drawn picture.")
    guidance_scale: float = Field(default=4.0, ge=1, le=20, description="Guidance of the drawn pictures; 1 is none.")
    seed: int = Field(default=0, ge=0, description="Seed of the first drawn picture; the others follow.")
    batch_size: int = Field(default=4, ge=1, le=256, description="Pictures drawn at once.")

    @property
    def is_empty(self) -> bool:
        return not self.photos and not self.drawn

    def caption_of(self, class_word: str) -> str:
        """The caption with the class in its place."""
        return self.caption.replace("{class_word}", class_word)


class RegularisationStage(Settings):
    """The slice that index_regularisation reads."""

    folders: PhotoFolders
    photo: PhotoSettings


class ClassImagesStage(Settings):
    """The slice that draw_class_images reads."""

    base_model: ModelSource
    caption: str
    drawn: int
    size_px: int
    sampling_steps: int
    guidance_scale: float
    seed: int
    batch_size: int
    precision: str = "bfloat16"
    offline: bool = True
    cpu_threads: int = 1
