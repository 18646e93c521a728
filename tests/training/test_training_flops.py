"""The floor: counted by hand from the layout, against torch's own counter on the model, and against published counts."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_transformer
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count

from likeness.config.training import TrainingSettings
from likeness.klein.family import KLEIN_4B, KLEIN_9B, layout_of
from likeness.training import flops
from likeness.training.adapter import add_adapter
from likeness.training.flops import ATTENTION_BACKWARD, ATTENTION_FORWARD, StepFlops, step_flops
from likeness.training.memory import checkpoint_blocks
from likeness.training.shape import shape_adapter

IMAGE, TEXT = 24, 12
KEPT_SCORES = 8
"""Backward operations of an attention that keeps its scores, as it is where there is no fused kernel: two products for
each of the two forward ones."""


@pytest.fixture(autouse=True)
def without_fused_kernel(request, monkeypatch):
    """The meta device has none; what a fused one costs is tested against torch's own formula."""
    if "torch_counts" in request.node.name or "recomputed" in request.node.name:
        monkeypatch.setattr(flops, "ATTENTION_BACKWARD", KEPT_SCORES)


def test_a_fused_attention_costs_what_torch_says():
    shape = (1, 2, 36, 32)
    backward = sdpa_backward_flop_count(shape, shape, shape, shape)
    assert backward == ATTENTION_BACKWARD * 36**2 * 64 and ATTENTION_FORWARD == 4


def counted(settings: TrainingSettings, every: int | None = None) -> int:
    """What torch counts of one step of the small transformer on the meta device."""
    with torch.device("meta"):
        transformer = tiny_transformer()
    layout = layout_of(transformer.config)
    with torch.device("meta"):
        add_adapter_on_meta(transformer, settings, layout)
    if every:
        checkpoint_blocks(transformer, every)
    inputs = {
        "hidden_states": torch.empty(1, IMAGE, 16, device="meta"),
        "encoder_hidden_states": torch.empty(1, TEXT, 96, device="meta"),
        "timestep": torch.empty(1, device="meta"),
        "img_ids": torch.empty(IMAGE, 4, device="meta"),
        "txt_ids": torch.empty(TEXT, 4, device="meta"),
    }
    counter = FlopCounterMode(display=False)
    with counter:
        transformer(**inputs, guidance=None, return_dict=False)[0].sum().backward()
    return counter.get_total_flops()


def add_adapter_on_meta(transformer, settings, layout) -> None:
    from likeness.training import adapter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "initialise", lambda *_: None)
        add_adapter(transformer, settings, layout)


def by_hand(settings: TrainingSettings, recomputed=()) -> StepFlops:
    layout = layout_of(tiny_transformer().config)
    ranks = {name: one.rank for name, one in shape_adapter(settings, layout).items()}
    return step_flops(layout, ranks, IMAGE, TEXT, recomputed)


@pytest.mark.parametrize(
    "targets",
    ["all_blocks", "double_attn", "double_all", "image_stream", "single_in", "single_all", "attention", "st_default"],
)
def test_torch_counts_the_same_of_every_preset(targets):
    settings = TrainingSettings(rank=4, targets=targets)
    found = by_hand(settings)
    assert found.total == counted(settings), found


def test_torch_counts_the_same_of_chosen_blocks_and_ranks_of_their_own():
    settings = TrainingSettings.model_validate(
        {"rank": 4, "targets": "all_blocks@double=1;single=0,2+x_embedder", "adapter": {"ranks": {"single_all": 2}}}
    )
    assert by_hand(settings).total == counted(settings)


@pytest.mark.parametrize("every", [1, 2])
def test_recomputed_blocks_cost_about_their_forward_pass_again(every):
    settings = TrainingSettings(rank=4)
    found = by_hand(settings, range(0, 5, every)).total
    assert counted(settings) < counted(settings, every) <= found * 1.03
    assert found < 1.12 * counted(settings, every)


def test_the_published_counts_of_klein():
    """169.1 and 245.1 TFLOP (9B) and 80.2 (4B) for 1024 px, 512 text tokens, rank 32 on all blocks: measured with torch's
    counter on the full models without weights."""
    tera = {}
    for layout in (KLEIN_4B, KLEIN_9B):
        ranks = dict.fromkeys(shape_adapter(TrainingSettings(), layout), 32)
        for references in (0, 1, 3):
            tera[layout.name, references] = step_flops(layout, ranks, 4096 * (1 + references), 512).total / 1e12
        blocks = range(layout.num_double + layout.num_single)
        tera[layout.name, "again"] = step_flops(layout, ranks, 4096, 512, blocks).total / 1e12
    assert tera["klein-9b", 0] == pytest.approx(169.1, rel=0.005)
    assert tera["klein-9b", 1] == pytest.approx(384.7, rel=0.005)
    assert tera["klein-9b", 3] == pytest.approx(1000.7, rel=0.005)
    assert tera["klein-9b", "again"] == pytest.approx(245.1, rel=0.01)
    assert tera["klein-4b", 0] == pytest.approx(80.2, rel=0.005)


def test_the_floor_adds_up_what_runs_at_different_speeds():
    flops = StepFlops(base=100, adapter=10, attention=ATTENTION_BACKWARD)
    assert flops.floor_s(10.0) == pytest.approx(12.0)
    assert flops.floor_s(10.0, 20.0) == pytest.approx(7.0)
