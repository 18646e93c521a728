"""What a second LoRA costs: nothing where it does nothing, something where it does. Oracle: the merged file."""

from __future__ import annotations

import pytest
from tests.evaluation.conftest import lora_file
from tests.evaluation.test_ablate import write_planted
from tests.evaluation.test_score import workplace_of

from likeness.config.surgery import Crosstalk
from likeness.errors import UserError
from likeness.evaluation.crosstalk import losses_of, measure_crosstalk, sides_of
from likeness.evaluation.draw import LoraFile
from likeness.evaluation.parents import Found
from likeness.evaluation.score import score_base
from likeness.lora.crosstalk import overlaps
from likeness.lora.files import read_lora
from likeness.lora.merge import merge_loras
from likeness.lora.operation import write_operation
from likeness.store import sha256_of_file
from likeness.tables import read_rows
from likeness.tables_surgery import CROSSTALK, OVERLAPS


def found_of(path):
    return Found(LoraFile(path, sha256_of_file(path)), None, path.name)


def sides(project, own, other, subjects=("jane",), **settings):
    """The sides of a pair; a second subject is the same tiny project under another name."""
    crosstalk = Crosstalk.model_validate({"beside": str(other), **settings})
    workplaces = [workplace_of(project) for _ in subjects]
    folders = [project.evaluation("base") for _ in subjects]
    return crosstalk, sides_of(crosstalk, (found_of(own), found_of(other)), subjects, workplaces, folders)


def losses(project, own, other):
    _, (side,) = sides(project, own, other)
    return {one.metric: one for one in losses_of(side)[0]}, side.workplace


@pytest.fixture
def files(project):
    """The subject's LoRA, and a loud one beside it; the base is scored."""
    score_base(workplace_of(project), project.evaluation("base"))
    own, loud = project.folder / "own.safetensors", project.folder / "loud.safetensors"
    lora_file(own, project.base, 1, 0.5)
    lora_file(loud, project.base, 2, 1.5)
    return own, loud


def test_a_lora_that_does_nothing_costs_nothing_and_another_costs_what_the_merged_file_costs(project, files):
    own, loud = files
    silent = write_planted(project, "single_all", strong="nothing", weak=0.0)
    quiet, _ = losses(project, own, silent)
    assert quiet["csim"].difference.value == pytest.approx(0, abs=5e-3)
    costly, _ = losses(project, own, loud)
    merged = project.folder / "merged.safetensors"
    write_operation(merged, merge_loras([read_lora(own), read_lora(loud)], [1.0, 1.0]), {})
    as_file, _ = losses(project, merged, silent)
    assert costly["csim"].together == pytest.approx(as_file["csim"].alone, abs=5e-3)
    assert abs(costly["csim"].difference.value) > 5e-3
    for one in costly.values():
        assert one.difference.value == pytest.approx(one.together - one.alone)
        assert one.difference.low is None or one.difference.low <= one.difference.value <= one.difference.high
    again, workplace = losses(project, own, loud)
    assert again == costly and not +workplace.store.computed and workplace.models_loaded == 0


def test_both_subjects_are_measured_and_the_tables_hold_what_was_found(project, files):
    own, loud = files
    crosstalk, both = sides(project, own, loud, ("jane", "sam"))
    folder = project.results / "crosstalk" / "with-sam"
    rows = measure_crosstalk("with-sam", crosstalk, both, folder / "losses.parquet", folder / "overlaps.parquet")
    assert read_rows(folder / "losses.parquet", CROSSTALK) == sorted(
        rows, key=lambda row: (row["subject"], row["metric"])
    )
    assert {row["subject"] for row in rows} == {"jane", "sam"} and (folder / "sheet.jpg").is_file()
    by_place = {(row["subject"], row["metric"]): row for row in rows}
    ours, theirs = by_place["jane", "csim"], by_place["sam", "csim"]
    assert (ours["own"], ours["other"]) == (theirs["other"], theirs["own"]) == (own.name, loud.name)
    assert ours["together"] == pytest.approx(theirs["together"], abs=5e-3) and ours["alone"] != theirs["alone"]
    assert ours["difference"] == pytest.approx(ours["together"] - ours["alone"])
    modules = read_rows(folder / "overlaps.parquet", OVERLAPS)
    expected = [one._asdict() for one in overlaps(read_lora(own), read_lora(loud))]
    assert [row["module"] for row in modules] == [one["module"] for one in expected]
    assert modules[3] == pytest.approx(expected[3])


def test_the_second_subject_sees_the_pair_from_the_other_end(project, files):
    """Content stays content and words stay with their LoRAs, whoever is measured."""
    own, loud = files
    _, (first, second) = sides(project, own, loud, ("jane", "sam"), method="k-lora")
    assert not first.mixture.own_is_style and second.mixture.own_is_style
    _, (first, second) = sides(project, own, loud, ("jane", "sam"), method="masked", word="s4m")
    assert first.mixture.words == (project.stage.trigger, "s4m") == second.mixture.words[::-1]
    assert first.own == second.other and second.own == first.other


def test_loras_of_other_models_are_refused_before_anything_is_drawn(project, files, tmp_path):
    from tests.lora.test_lora_inspect import lora_for

    from likeness.klein.family import KLEIN_4B
    from likeness.lora.files import save_lora

    foreign = tmp_path / "foreign.safetensors"
    save_lora(foreign, lora_for(KLEIN_4B, [r"^transformer_blocks\.0\.attn\.to_q$"]), {})
    crosstalk, both = sides(project, files[0], foreign)
    with pytest.raises(UserError, match="different base models"):
        measure_crosstalk("x", crosstalk, both, tmp_path / "losses.parquet", tmp_path / "overlaps.parquet")
    assert not +both[0].workplace.store.computed
