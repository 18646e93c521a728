"""Which blocks take content and which take style from the prompt: the prompt-swap probe over every block, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from likeness.config.evaluation import ScoreStage
from likeness.evaluation.draw import Drawer, Inputs, Request, Sample
from likeness.evaluation.models import Models
from likeness.evaluation.pictures import Pictures
from likeness.evaluation.prompts import GridPoint
from likeness.photos.images import ImageRef
from likeness.store import Store, item_key

if TYPE_CHECKING:
    import torch

VERSION = 1


class Role(NamedTuple):
    """How far one block takes the picture from one prompt to another: 0 not at all, 1 all the way.

    `change` is by pixels; `clip` by how much closer to the other prompt's text, null without a CLIP model or where the
    whole swap brings it no closer.
    """

    block: str
    change: float
    clip: float | None


class SwapDrawer(Drawer):
    """Draws with another prompt's text inside chosen blocks."""

    def __init__(
        self, stage: ScoreStage, store: Store, images: Mapping[str, ImageRef], other: str, blocks: Sequence[str]
    ) -> None:
        super().__init__(stage, store, images)
        self.other, self.blocks = other, tuple(sorted(blocks))
        self._inputs: Inputs | None = None

    def key(self, request: Request) -> str:
        own = super().key(request)
        return item_key("swapped", VERSION, None, own, [self.other, list(self.blocks)]) if self.blocks else own

    def _encode(self, requests: Sequence[Request]) -> Inputs:
        other = replace(requests[0], point=replace(requests[0].point, prompt=self.other))
        self._inputs = super()._encode([*requests, other])
        return self._inputs

    def _latents(self, sample: Sample, points: Sequence[GridPoint], grid: tuple[int, int]) -> torch.Tensor:
        import torch

        from likeness.klein.probe import text_swapped

        assert self._inputs is not None
        own_BTD = torch.stack([self._inputs.embedding(point.prompt) for point in points])
        other_BTD = self._inputs.embedding(self.other)[None].expand_as(own_BTD)
        device, dtype = self._base.device, self._base.dtype
        with text_swapped(self._base.transformer, own_BTD.to(device, dtype), other_BTD.to(device, dtype), self.blocks):
            return sample(guidance_scale=self.guidance)


def probe_blocks(stage: ScoreStage, store: Store, prompt: str, other: str, seeds: Sequence[int]) -> list[Role]:
    """Swap `prompt` for `other` in every block alone, over seeds, and say how far each brings the picture there."""
    from likeness.lora.blocks import blocks_of

    models, pictures = Models(stage.evaluation, store, stage.offline), Pictures(store, {}, None)
    size_px = (stage.evaluation.width_px, stage.evaluation.height_px)
    points = [GridPoint("probe", "neutral", prompt, seed, "select", *size_px) for seed in seeds]
    drawer = SwapDrawer(stage, store, {}, other, ())
    blocks = blocks_of(drawer.layout)

    def drawn(chosen: Sequence[str]) -> list[str]:
        drawer.blocks = tuple(sorted(chosen))
        found = drawer.draw([Request(point) for point in points])
        return [found[Request(point)] for point in points]

    own, whole = drawn([]), drawn(blocks)

    def distance(first: Sequence[str], second: Sequence[str]) -> float:
        pairs = zip(first, second, strict=True)
        return float(np.mean([np.abs(pictures.raw(a).astype(float) - pictures.raw(b)).mean() for a, b in pairs]))

    def closeness(images: Sequence[str]) -> float | None:
        if models.clip is None:
            return None
        clip = models.clip
        text_D = clip.text_embedding(other)
        cosines = [clip.image_embedding(one, lambda one=one: pictures.raw(one)) @ text_D for one in images]
        return float(np.mean(cosines))

    far, before, after = distance(own, whole), closeness(own), closeness(whole)
    roles = []
    for block in blocks:
        images = drawn([block])
        now = closeness(images)
        is_measured = before is not None and after is not None and now is not None and after > before
        clip = (now - before) / (after - before) if is_measured else None  # type: ignore[operator]
        roles.append(Role(block, distance(own, images) / far if far else 0.0, clip))
    return roles


def split_by_swaps(content: Sequence[Role], style: Sequence[Role]) -> dict[str, list[str]]:
    """Content and style blocks: each goes where its part of all blocks' shifts is the larger one."""

    def parts(roles: Sequence[Role]) -> dict[str, float]:
        shifts: dict[str, Any] = {
            role.block: max(0.0, role.change if role.clip is None else role.clip) for role in roles
        }
        total = sum(shifts.values())
        return {block: shift / total if total else 0.0 for block, shift in shifts.items()}

    of_content, of_style = parts(content), parts(style)
    chosen = {
        block: "content_blocks" if of_content[block] >= of_style[block] else "style_blocks" for block in of_content
    }
    return {key: [block for block in chosen if chosen[block] == key] for key in ("content_blocks", "style_blocks")}
