"""Settings of the losses: each has its own weight, a window of noise levels, and a column in the training's log."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from likeness.config.base import ModelChoice, Settings


class LossSettings(Settings):
    """What every loss has."""

    weight: float = Field(default=1.0, ge=0, le=1000, description="Factor of the loss in the sum; 0 only watches it.")
    sigma_min: float = Field(default=0.0, ge=0, le=1, description="Samples below this noise level do not count.")
    sigma_max: float = Field(default=1.0, ge=0, le=1, description="Samples above this noise level do not count.")

    @model_validator(mode="after")
    def check_window(self) -> LossSettings:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min}) must be below sigma_max ({self.sigma_max})")
        return self


class VelocityLossSettings(LossSettings):
    """Squared error of the velocity: what flow matching learns from."""

    weighting: Literal["none", "sigma2", "bell"] = Field(
        default="none",
        description="How noise levels count: alike; by their square, which is the squared error of the image (ConsisLoRA); "
        "or by a bell around one half with mean 1.",
    )
    face_weight: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="How much more the subject's face counts than the rest, on top of the mask; the mean weight stays 1.",
    )
    region: Literal["whole", "right_half"] = Field(
        default="whole",
        description="right_half learns only the right half of diptychs, whose left half shows the source (ICEdit).",
    )


class OutputPreservationSettings(LossSettings):
    """Keeps the model's answer to the class: adapter on against adapter off, for the caption with the class instead of
    the trigger. It costs two more passes of the model."""


class PriorPreservationSettings(LossSettings):
    """Squared error of the velocity on pictures of the class (`regularisation:` of the subject), after DreamBooth
    (arXiv:2208.12242): its weight is their share in the loss, and `ratio` how often they are seen. They come on top of the
    subject's samples, each of their micro-batches at the cost of one."""

    ratio: float = Field(
        default=1.0,
        gt=0,
        le=4,
        description="Micro-batches of the class for each one of the subject; 1: one each (DreamBooth), 0.17: one to six.",
    )
    weighting: Literal["none", "sigma2", "bell"] = Field(
        default="none", description="How noise levels count, as in losses.velocity.weighting."
    )


class MaskedPriorSettings(LossSettings):
    """Keeps the model's own answer outside of the mask: adapter on against adapter off. It costs one more pass."""


class SliderSettings(LossSettings):
    """Teaches a direction between two prompts (Concept Sliders, arXiv:2311.12092); set losses.velocity.weight to 0 for a
    slider alone. The adapted model's answer to `target` is drawn to the bare model's, plus `guidance` times the sum over
    the preserved attributes of positive minus negative. It costs a pass for each prompt."""

    target: str = Field(description="Prompt whose answer is moved, such as `a person`.")
    positive: str = Field(description="Prompt of more, such as `an old person`.")
    negative: str = Field(description="Prompt of less, such as `a young person`.")
    preserve: tuple[str, ...] = Field(
        default=("",),
        min_length=1,
        description="Attributes put before positive and negative alike, so that the direction does not change them.",
    )
    guidance: float = Field(default=3.0, gt=0, le=20, description="Length of the direction.")

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt that is encoded: the target, then positive and negative of every attribute."""
        pairs = [(f"{one} {self.positive}".strip(), f"{one} {self.negative}".strip()) for one in self.preserve]
        return (self.target, *[prompt for pair in pairs for prompt in pair])


class ImageSliderSettings(LossSettings):
    """Teaches what changes from the source to the target of pairs (image sliders of Concept Sliders, arXiv:2311.12092): at
    `strength` the adapted model learns the targets, and at minus `strength` the sources, with one noise, one noise level and
    one prompt, and no reference. For edits; set losses.velocity.weight to 0 for a slider alone. It costs two more passes."""

    prompt: str = Field(description="Prompt of both sides, which must not say what changes, such as `a person`.")
    strength: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="Strength of the adapter, up and down, at which the pair's two sides are learned.",
    )


class IdentitySettings(LossSettings):
    """Draws the face of the implied image to the subject's, by a face recogniser (an ONNX file, which must not be the one
    that evaluation uses). It costs a decoding of the face's region; the VAE stays in memory."""

    weight: float = Field(default=0.1, ge=0, le=1000, description="Factor of the loss in the sum.")
    sigma_max: float = Field(
        default=0.6, ge=0, le=1, description="Above this noise level the implied image is too blurred to have a face."
    )
    model: ModelChoice = Field(
        description="The recogniser's ONNX file, such as w600k_r50.onnx of insightface's buffalo_l."
    )
    target: Literal["others", "own"] = Field(
        default="others",
        description="others: the mean of the other photos' faces, so that no photo is copied; own: the photo's (for edits).",
    )
    min_similarity: float = Field(
        default=0.2, ge=-1, le=1, description="Faces less similar than this do not count: they are none yet."
    )


class LpipsSettings(LossSettings):
    """Perceptual distance (LPIPS, arXiv:1801.03924) of the implied image to the sample's own. It costs a decoding of the
    whole picture with its gradient; the VAE stays in memory."""

    weight: float = Field(default=0.1, ge=0, le=1000, description="Factor of the loss in the sum.")
    sigma_max: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Above this noise level the implied image is a blur, and so is its distance.",
    )
    net: Literal["vgg", "alex"] = Field(
        default="vgg", description="Trunk; vgg is meant for losses, alex for measuring."
    )
    model: ModelChoice = Field(
        description="The trunk's weights as torchvision has them: vgg16-397923af.pth or alexnet-owt-7be5be79.pth."
    )


class ContrastiveSettings(LossSettings):
    """Symmetric contrastive loss (PixelSmile): by a CLIP image encoder, the implied image is drawn to the sample's own and
    away from its partner's (a sample of the same size, of the same source where there is one), and the partner's likewise
    with the same noise. It costs one more pass and two decodings; the VAE stays in memory."""

    weight: float = Field(default=0.1, ge=0, le=1000, description="Factor of the loss in the sum.")
    sigma_max: float = Field(default=0.6, ge=0, le=1, description="Above this noise level the implied image is a blur.")
    temperature: float = Field(
        default=0.07, gt=0, le=10, description="Divides the cosines; smaller tells harder apart."
    )
    model: ModelChoice = Field(
        description="Folder of a CLIP model in transformers layout, such as clip-vit-large-patch14."
    )


class LossesSettings(Settings):
    """The losses whose sum is optimised; null is off."""

    velocity: VelocityLossSettings = VelocityLossSettings()
    output_preservation: OutputPreservationSettings | None = Field(
        default=None, description="Keeps the class as the base model draws it."
    )
    prior_preservation: PriorPreservationSettings | None = Field(
        default=None, description="Learns pictures of the class beside the subject's, so that the class stays."
    )
    masked_prior: MaskedPriorSettings | None = Field(
        default=None, description="Keeps what lies outside of the mask as the base model would draw it."
    )
    slider: SliderSettings | None = Field(default=None, description="Teaches a direction between two prompts.")
    image_slider: ImageSliderSettings | None = Field(
        default=None, description="Teaches the direction from the sources of pairs to their targets."
    )
    identity: IdentitySettings | None = Field(default=None, description="Draws the face to the subject's.")
    lpips: LpipsSettings | None = Field(
        default=None, description="Draws the picture to the sample's own, as LPIPS sees it."
    )
    contrastive: ContrastiveSettings | None = Field(
        default=None, description="Tells the sample's picture from its partner's."
    )

    @property
    def reads_faces(self) -> bool:
        """Whether the subject's face must be known in every sample."""
        return self.identity is not None or self.velocity.face_weight > 0

    @property
    def models(self) -> dict[str, str]:
        """Where the models of the losses lie, by the loss: each of them looks at decoded pictures."""
        on = {name: getattr(self, name) for name in ("identity", "lpips", "contrastive")}
        return {name: one.model.source for name, one in on.items() if one is not None}

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """Names of the losses that are on beside the velocity's, with a weight."""
        fields = [name for name in type(self).model_fields if name != "velocity"]
        return tuple(name for name in fields if (one := getattr(self, name)) is not None and one.weight > 0)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Prompts of the losses' own, beside the captions."""
        image = (self.image_slider.prompt,) if self.image_slider else ()
        return (*(self.slider.prompts if self.slider else ()), *image)

    @model_validator(mode="after")
    def check_something_is_learned(self) -> LossesSettings:
        if not self.velocity.weight and not self.auxiliary:
            raise ValueError("all weights are 0, so nothing would be learned")
        return self
