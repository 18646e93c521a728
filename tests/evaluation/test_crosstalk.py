"""What a second LoRA costs: nothing where it does nothing, something where it does. Oracle: the merged file."""

from __future__ import annotations

import pytest
from tests.evaluation.conftest import lora_file
from tests.evaluation.test_ablate import write_planted
from tests.evaluation.test_score import workplace_of

from likeness.evaluation.crosstalk import measure_crosstalk
from likeness.evaluation.draw import LoraFile
from likeness.evaluation.score import score_base
from likeness.lora.files import read_lora
from likeness.lora.merge import merge_loras
from likeness.lora.operation import write_operation
from likeness.store import sha256_of_file


def file_of(path):
    return LoraFile(path, sha256_of_file(path))


def test_a_lora_that_does_nothing_costs_nothing_and_another_costs_what_the_merged_file_costs(project):
    score_base(workplace_of(project), project.evaluation("base"))
    own, loud = project.folder / "own.safetensors", project.folder / "loud.safetensors"
    lora_file(own, project.base, 1, 0.5)
    lora_file(loud, project.base, 2, 1.5)
    silent = file_of(write_planted(project, "single_all", strong="nothing", weak=0.0))
    workplace = workplace_of(project)
    base = project.evaluation("base")
    quiet = {one.metric: one for one in measure_crosstalk(workplace, file_of(own), silent, base, "jane")}
    assert quiet["csim"].difference.value == pytest.approx(0, abs=5e-3)
    costly = {one.metric: one for one in measure_crosstalk(workplace, file_of(own), file_of(loud), base, "jane")}
    merged = project.folder / "merged.safetensors"
    write_operation(merged, merge_loras([read_lora(own), read_lora(loud)], [1.0, 1.0]), {})
    as_file = {one.metric: one for one in measure_crosstalk(workplace, file_of(merged), silent, base, "jane")}
    assert costly["csim"].together == pytest.approx(as_file["csim"].alone, abs=5e-3)
    assert abs(costly["csim"].difference.value) > 5e-3
    for one in costly.values():
        assert one.difference.value == pytest.approx(one.together - one.alone)
        assert one.difference.low is None or one.difference.low <= one.difference.value <= one.difference.high
    again = workplace_of(project)
    assert measure_crosstalk(again, file_of(own), file_of(loud), base, "jane") == list(costly.values())
    assert not +again.store.computed and again.models_loaded == 0
