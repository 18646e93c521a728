"""The encoded samples in memory, and the batches that the loop asks for; nothing is read from disk while training.

Axes: B samples, L target tokens, R reference tokens (of all references together), T text tokens, C latent channels,
D embedding width, 4 position coordinates.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.klein.ids import reference_ids, target_ids, text_ids
from likeness.klein.latents import pack
from likeness.store import Store
from likeness.training.encode import read_tensors
from likeness.training.plan import PlannedSample
from likeness.training.views import name_of_row, sample_of
from likeness.training.weights import box_on_tokens, right_half, token_weights, with_face

logger = logging.getLogger(__name__)
Grid = tuple[int, int]
Group = tuple[Grid, tuple[Grid, ...]]
"""Grids (height, width in tokens) of the target and of each reference: what a micro-batch must share."""


@dataclass(frozen=True)
class Sample:
    """One view of an encoded sample; tensors lie in main memory."""

    sample_id: str
    repeats: int
    group: Group
    latents_LC: torch.Tensor
    references_RC: torch.Tensor
    embedding_TD: torch.Tensor
    weights_L: torch.Tensor
    outside_L: torch.Tensor
    class_TD: torch.Tensor | None = None
    landmarks_52: np.ndarray | None = None
    of_class: bool = False
    """Whether it is a picture of the regularisation set."""
    source_LC: torch.Tensor | None = None
    """The pair's source at the target's own size, where a loss reads it."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch, of the subject or of its class, on the device: clean latents, clean references (None without any),
    embeddings, loss weights, ids.

    `sample_ids` are the names of views (see `views.py`); `scale_B` is what a sample's losses count, 1 for most;
    `outside_BL` the share of each token outside of the mask, 0 without one; `class_BTD` embeds captions that name the class
    instead of the trigger, and `source_BLC` are clean sources of pairs at their targets' size, where a loss reads them.
    """

    sample_ids: tuple[str, ...]
    latents_BLC: torch.Tensor
    reference_BRC: torch.Tensor | None
    embeddings_BTD: torch.Tensor
    weights_BL: torch.Tensor
    scale_B: torch.Tensor
    outside_BL: torch.Tensor
    class_BTD: torch.Tensor | None
    target_ids: torch.Tensor
    text_ids: torch.Tensor
    reference_ids: torch.Tensor | None
    of_class: bool = False
    source_BLC: torch.Tensor | None = None

    def subset(self, places: list[int]) -> Batch:
        """Only the samples at these places."""
        return replace(
            self,
            sample_ids=tuple(self.sample_ids[place] for place in places),
            latents_BLC=self.latents_BLC[places],
            reference_BRC=None if self.reference_BRC is None else self.reference_BRC[places],
            embeddings_BTD=self.embeddings_BTD[places],
            weights_BL=self.weights_BL[places],
            scale_B=self.scale_B[places],
            outside_BL=self.outside_BL[places],
            class_BTD=None if self.class_BTD is None else self.class_BTD[places],
            source_BLC=None if self.source_BLC is None else self.source_BLC[places],
        )


@dataclass
class TrainingData:
    """All samples of a training by id, the embedding of the empty caption, those of other prompts by their text, and the
    other views of samples by name."""

    samples: dict[str, Sample]
    empty_TD: torch.Tensor
    device: torch.device
    prompts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    other_views: dict[str, Sample] = field(default_factory=dict)
    _ids: dict[Group, tuple[torch.Tensor, ...]] = field(default_factory=dict, init=False, repr=False)

    def planned(self, of_class: bool = False) -> list[PlannedSample]:
        """What the order of training is made from: the subject's samples, or those of its class.

        Samples of one micro-batch share their sizes at every resolution.
        """
        sizes: dict[str, list[Group]] = {}
        for name in sorted(self.other_views):
            sizes.setdefault(sample_of(name), []).append(self.other_views[name].group)
        return [
            PlannedSample(one.sample_id, (*one.group, *sizes.get(one.sample_id, ())), one.repeats)
            for one in self.samples.values()
            if one.of_class == of_class
        ]

    def count_kinds(self, sample_ids: Iterable[str]) -> Counter[bool]:
        """How many of these samples are of the class, and how many the subject's."""
        return Counter(self.samples[one].of_class for one in sample_ids)

    @property
    def views(self) -> dict[str, Sample]:
        """Every view of every sample by name."""
        return {**self.samples, **self.other_views}

    def view(self, name: str) -> Sample:
        """One view of a sample."""
        return self.samples[name] if name in self.samples else self.other_views[name]

    def batch(self, sample_ids: Sequence[str], without_caption: Sequence[bool]) -> Batch:
        """Stack views of one group; where `without_caption` is set, the caption is left empty."""
        members = [self.view(name) for name in sample_ids]
        group = members[0].group
        assert len({(one.group, one.of_class) for one in members}) == 1, "a micro-batch must not mix groups"
        texts = [
            self.empty_TD if empty else one.embedding_TD for one, empty in zip(members, without_caption, strict=True)
        ]
        classes = [one.class_TD for one in members if one.class_TD is not None]
        sources = [one.source_LC for one in members if one.source_LC is not None]
        of_target, of_text, of_references = self._ids_of(group)
        has_references = bool(group[1])
        return Batch(
            tuple(sample_ids),
            torch.stack([one.latents_LC for one in members]).to(self.device),
            torch.stack([one.references_RC for one in members]).to(self.device) if has_references else None,
            torch.stack(texts).to(self.device),
            torch.stack([one.weights_L for one in members]).to(self.device),
            torch.ones(len(members), device=self.device),
            torch.stack([one.outside_L for one in members]).to(self.device),
            torch.stack(classes).to(self.device) if len(classes) == len(members) else None,
            of_target,
            of_text,
            of_references if has_references else None,
            members[0].of_class,
            torch.stack(sources).to(self.device) if len(sources) == len(members) else None,
        )

    def _ids_of(self, group: Group) -> tuple[torch.Tensor, ...]:
        if group not in self._ids:
            ids = (target_ids(*group[0]), text_ids(self.empty_TD.shape[0]), reference_ids(group[1]))
            self._ids[group] = tuple(one.to(self.device) for one in ids)
        return self._ids[group]


def load_samples(
    rows: Sequence[Mapping[str, Any]], settings: TrainingSettings, store: Store, device: torch.device
) -> TrainingData:
    """Read the tensors of the ENCODED rows that a training reads; with a masked loss, samples without a mask are warned of."""
    masked = settings.masked_loss.kind is not None
    hashes = [row[name] for row in rows for name in ("latents_sha256", "embedding_sha256", "empty_embedding_sha256")]
    hashes += [sha256 for row in rows for sha256 in row["reference_latents_sha256s"] or []]
    hashes += [row["weight_sha256"] for row in rows if masked and row["weight_sha256"]]
    hashes += [row["class_embedding_sha256"] for row in rows if settings.losses.output_preservation]
    hashes += [row["source_latents_sha256"] for row in rows if reads_source(row, settings)]
    encoded = dict(zip(rows[0]["prompts"] or [], rows[0]["prompt_embedding_sha256s"] or [], strict=True))
    if None in hashes or not set(settings.prompts) <= set(encoded):
        raise UserError(
            "the encoded table lacks prompts or sources that the training reads. Delete it and run again; it is made anew."
        )
    tensors = read_tensors(store, [*hashes, *(encoded[prompt] for prompt in settings.prompts)])
    views = {name_of_row(row, settings): make_sample(row, tensors, settings) for row in rows}
    samples = {name: one for name, one in views.items() if name == one.sample_id}
    unmasked = {row["sample_id"] for row in rows if masked and not row["weight_sha256"] and not row["regularisation"]}
    if unmasked:
        logger.warning("%d of %d samples have no mask; their whole picture is learned", len(unmasked), len(samples))
    prompts = {prompt: tensors[encoded[prompt]] for prompt in settings.prompts}
    others = {name: one for name, one in views.items() if name not in samples}
    return TrainingData(samples, tensors[rows[0]["empty_embedding_sha256"]], device, prompts, others)


def make_sample(row: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], settings: TrainingSettings) -> Sample:
    """Bring one row's tensors into the form that batches are stacked from."""
    latents_CHW = tensors[row["latents_sha256"]].float()
    references = [tensors[sha256].float() for sha256 in row["reference_latents_sha256s"] or []]
    packed = [pack(reference_CHW[None])[0] for reference_CHW in references]
    latents_LC = pack(latents_CHW[None])[0].contiguous()
    return Sample(
        row["sample_id"],
        row["repeats"],
        (grid_of(latents_CHW), tuple(grid_of(reference_CHW) for reference_CHW in references)),
        latents_LC,
        torch.cat(packed) if packed else torch.zeros(0, latents_LC.shape[1]),
        tensors[row["embedding_sha256"]],
        sample_weights(row, tensors, settings, grid_of(latents_CHW)),
        outside_mask(row, tensors, settings, grid_of(latents_CHW)),
        tensors[row["class_embedding_sha256"]] if settings.losses.output_preservation else None,
        np.array(row["landmarks"]).reshape(5, 2) if row["landmarks"] else None,
        bool(row["regularisation"]),
        pack(tensors[row["source_latents_sha256"]].float()[None])[0].contiguous()
        if reads_source(row, settings)
        else None,
    )


def reads_source(row: Mapping[str, Any], settings: TrainingSettings) -> bool:
    """Whether a loss reads the source of a sample; pictures of the class have none."""
    return settings.losses.image_slider is not None and not row["regularisation"]


def outside_mask(
    row: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], settings: TrainingSettings, grid: Grid
) -> torch.Tensor:
    """The share of each token outside of what is learned (L,); 0 where no mask is read."""
    mask_HW = learned_mask(row, tensors, settings)
    return torch.zeros(grid[0] * grid[1]) if mask_HW is None else (1.0 - mask_HW).flatten()


def learned_mask(
    row: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], settings: TrainingSettings
) -> torch.Tensor | None:
    """The share of each token that is learned, mask_HW: inside of the mask, or outside where it is inverted; None for all."""
    if settings.masked_loss.kind is None or not row["weight_sha256"]:
        return None
    mask_HW = tensors[row["weight_sha256"]]
    mask_HW = 1.0 - mask_HW if settings.masked_loss.inverted else mask_HW
    # The left half of a diptych is the source: no mask of the target lies there.
    return torch.cat([torch.zeros_like(mask_HW), mask_HW], dim=1) if settings.buckets.diptych else mask_HW


def sample_weights(
    row: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], settings: TrainingSettings, grid: Grid
) -> torch.Tensor:
    """The loss weights_L of one sample's tokens; UserError where nothing would be learned from it."""
    mask_HW = learned_mask(row, tensors, settings)
    weights_HW = torch.ones(grid) if mask_HW is None else token_weights(mask_HW, settings.masked_loss.unmasked_weight)
    if settings.losses.velocity.face_weight and row["face_box"]:
        face_HW = box_on_tokens(row["face_box"], grid, row["width_px"] / grid[1])
        weights_HW = with_face(weights_HW, face_HW, settings.losses.velocity.face_weight)
    if settings.losses.velocity.region == "right_half":
        try:
            weights_HW = right_half(weights_HW)
        except ValueError as error:
            raise UserError(
                f"sample {row['sample_id'][:12]}…: {error}. Set buckets.bucket_step_px to a multiple of two tokens."
            ) from error
    if not weights_HW.sum() > 0:
        raise UserError(
            f"sample {row['sample_id'][:12]}…: nothing of its mask lies inside the training crop, and "
            "training.masked_loss.unmasked_weight is 0. Raise unmasked_weight, or drop the photo with that sample id "
            "(decisions.parquet names it)."
        )
    return weights_HW.flatten()


def grid_of(latents_CHW: torch.Tensor) -> Grid:
    return int(latents_CHW.shape[1]), int(latents_CHW.shape[2])
