"""The LoRA library beside other libraries' own code: LyCORIS, and mergekit where it is installed.

mergekit brings some twenty packages along, so it is no dependency of the tests; its rules are also written out in loops in
test_lora_dense.py. `uv pip install --no-deps --target DIR mergekit`, and DIR on PYTHONPATH, makes these tests run.
"""

from __future__ import annotations

import pytest
import torch
from lycoris.functional.lokr import diff_weight
from lycoris.modules.lokr import LokrModule
from lycoris.utils import extract_linear
from tests.lora.conftest import dense, difference, random_module

from likeness.lora.dense import drop_at_random, keep_largest, merge_by_signs
from likeness.lora.factors import spectrum, weighted_sum
from likeness.lora.formats import parse_lora
from likeness.lora.lokr import SIDES
from likeness.lora.resize import RankRule, choose_rank

NAME = "transformer_blocks.0.attn.to_out.0"
SHAPES = [(64, 96), (128, 64)]


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize(
    "settings",
    [
        {"lora_dim": 4, "alpha": 2},
        {"lora_dim": 2, "alpha": 8, "decompose_both": True, "factor": 8},
        {"lora_dim": 100_000, "alpha": 1, "full_matrix": True, "factor": 4},
    ],
    ids=["one whole", "both products", "both whole"],
)
def test_lokr_is_what_a_trained_lycoris_module_adds(settings, outputs, inputs):
    """Oracle: the module's own forward pass, and LyCORIS' formula; its get_diff_weight applies the scale twice."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(inputs, outputs, bias=False)
    module = LokrModule("lora", linear, **settings)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tensors = {
        f"lycoris_{NAME.replace('.', '_')}.{key}": tensor.detach().clone()
        for key, tensor in module.state_dict().items()
        if key == "alpha" or key.startswith("lokr")
    }
    found = dense(parse_lora(tensors, {}, "the file").modules[NAME])
    weights = [tensors.get(f"lycoris_{NAME.replace('.', '_')}.lokr_{side}") for side in SIDES]
    assert difference(diff_weight(*weights, None, gamma=float(module.alpha)), found) < 1e-5
    module.apply_to()
    with torch.no_grad():
        added = linear(torch.eye(inputs)) - torch.nn.functional.linear(torch.eye(inputs), linear.weight)
    assert difference(added.T, found) < 1e-5


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_truncation_is_what_lycoris_extracts(rank):
    """Oracle: LyCORIS' full decomposition of the built change."""
    module = random_module(8, decay=0.7, scale=0.6)
    (down_RI, up_OR, _), kind = extract_linear(dense(module), "fixed", rank)
    assert kind == "low rank"
    assert difference(up_OR @ down_RI, dense(spectrum(module).truncated(rank))) < 1e-6


@pytest.mark.parametrize("ratio", [2.0, 5.0, 30.0])
def test_ranks_by_ratio_are_those_of_lycoris(ratio):
    """LyCORIS writes the ratio as its inverse; without a value right on the threshold both keep the same ones."""
    module = random_module(10, outputs=60, decay=0.6)
    (down_RI, _, _), _ = extract_linear(dense(module), "ratio", 1 / ratio)
    assert choose_rank(spectrum(module).singular_K, RankRule(10, "ratio", ratio)) == len(down_RI)


# ---- mergekit -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def merge_tensors():
    """mergekit's own function for the tensors of one name."""
    return pytest.importorskip("mergekit.merge_methods.api", reason="mergekit is not installed").merge_tensors


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 0.3, 0.2), (0.9, -0.4, 0.2)])
@pytest.mark.parametrize("density", [0.2, 0.7])
def test_ties_is_mergekits(merge_tensors, weights, density):
    deltas = torch.randn(3, 17, 9, generator=torch.Generator().manual_seed(2))
    base, settings = torch.zeros(17, 9), {"weight": list(weights), "density": density}
    theirs = merge_tensors([base, *deltas], "ties", parameters=settings, base_index=0)
    ours = merge_by_signs(deltas, torch.tensor(weights), density, "mergekit")
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_weighted_sum_is_mergekits_task_arithmetic(merge_tensors):
    modules, weights = [random_module(rank, seed=rank) for rank in (2, 5)], [0.7, -0.4]
    base = torch.zeros(40, 24, dtype=torch.float64)
    deltas = [dense(module) for module in modules]
    theirs = merge_tensors([base, *deltas], "task_arithmetic", parameters={"weight": weights}, base_index=0)
    assert difference(theirs, dense(weighted_sum(modules, weights))) < 1e-6


def test_trimming_is_mergekits():
    sparsify = pytest.importorskip("mergekit.sparsify", reason="mergekit is not installed")
    delta = torch.randn(11, 13, generator=torch.Generator().manual_seed(0))
    for density in (0.001, 0.1, 0.5, 1.0):
        assert torch.equal(keep_largest(delta, density), sparsify.magnitude(delta, density))


def test_dare_drops_as_mergekit_does_but_divides_by_the_density():
    """Both keep an unchanged direction of what is left; mergekit matches the sum of magnitudes, the paper divides."""
    sparsify = pytest.importorskip("mergekit.sparsify", reason="mergekit is not installed")
    delta, density = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), 0.1
    torch.manual_seed(0)
    factors = []
    for _ in range(50):
        theirs = sparsify.bernoulli(delta, density, sparsify.RescaleNorm.l1)
        kept = theirs != 0
        factors.append(float((theirs[kept] / delta[kept]).mean()))
        assert torch.allclose(theirs[kept] / delta[kept], torch.tensor(factors[-1]))
    assert min(factors) < 8 and max(factors) > 12, "on small tensors mergekit's factor wanders around 1 / density"
    ours = drop_at_random(delta, density, torch.Generator().manual_seed(0))
    assert torch.allclose(ours[ours != 0] / delta[ours != 0], torch.tensor(1 / density))
