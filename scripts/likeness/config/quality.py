"""Settings of the quality stage: thresholds below which the phase decision drops a sample.

The stage itself only measures; limits are read by the decision, so that an edited threshold measures nothing anew.
"""

from __future__ import annotations

from pydantic import Field

from likeness.config.base import ModelChoice, Settings


class QualitySettings(Settings):
    """How measures are taken."""

    sharpness_crop_px: int = Field(
        default=256,
        ge=32,
        description="Side to which a larger face crop is scaled down before sharpness is taken, in px.",
    )
    working_side_px: int = Field(
        default=1024,
        ge=64,
        le=4096,
        description="Longer side at which colours are taken and pairs are compared, in px.",
    )
    background_bins: int = Field(
        default=4, ge=2, le=16, description="Bins a channel of the background's colour histogram."
    )
    body_pose: ModelChoice | None = Field(
        default=None,
        description="Body keypoint model (ViTPose folder or hub id) for framing; null: face height against frame height.",
    )
    light_distance: float = Field(
        default=12.0, gt=0, description="Distance (CIELab units) above which two lights are different set-ups."
    )
    background_distance: float = Field(
        default=0.5, gt=0, le=2, description="Histogram distance (L1) above which two backgrounds differ."
    )


class QualityLimits(Settings):
    """Hard limits of a usable sample; null switches a limit off."""

    min_sharpness: float | None = Field(
        default=60.0, ge=0, description="Variance of the Laplacian on the scaled face crop, in grey levels squared."
    )
    max_clipped: float | None = Field(
        default=0.25, ge=0, le=1, description="Largest share of black or burnt-out face pixels."
    )
    min_face_px: int | None = Field(default=64, ge=0, description="Smallest face height, in px of the photo.")
    max_yaw_deg: float | None = Field(default=None, ge=0, le=180, description="Largest head turn, in degrees.")
    keep_near_duplicates: bool = Field(default=False, description="Keep all near duplicates instead of the sharpest.")
    min_background_ssim: float | None = Field(
        default=0.8, ge=-1, le=1, description="Pairs: background likeness outside the grown head mask."
    )
    max_shift_px: float | None = Field(
        default=2.0, ge=0, description="Pairs: largest shift between source and target, in px of the target."
    )
    max_skin_delta_e: float | None = Field(
        default=12.0, ge=0, description="Pairs: largest skin colour difference (CIEDE2000)."
    )
    max_hair_delta_e: float | None = Field(
        default=20.0, ge=0, description="Pairs: largest hair colour difference (CIEDE2000)."
    )
    max_hair_area_ratio: float | None = Field(
        default=1.6, ge=1, description="Pairs: largest ratio of hair areas, either way."
    )
    max_pose_delta_deg: float | None = Field(
        default=15.0, ge=0, description="Pairs: largest pose difference, in degrees."
    )
    min_pair_identity: float | None = Field(
        default=0.35,
        ge=-1,
        le=1,
        description="Pairs: smallest identity cosine between source (or face reference) and target.",
    )
    min_change: float | None = Field(
        default=0.003, ge=0, le=1, description="Pairs: mean absolute change below which nothing was edited (0..1 grey)."
    )


class QualityStage(Settings):
    """The slice that measure_quality and merge_quality read."""

    quality: QualitySettings
    kind: str
    offline: bool = True
