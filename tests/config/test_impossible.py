"""What the base model cannot do is refused while the configuration is read, at the line where it is set."""

from __future__ import annotations

from pathlib import Path

import pytest

from likeness.config.load import load_project
from likeness.errors import UserError

GOOD = "trigger: j4ne\nphotos: data/jane\n"
NINE = "base_model: black-forest-labs/FLUX.2-klein-base-9B\n"


def mistakes(folder: Path, text: str) -> list[str]:
    """The lines of the complaint about a subject; none where it is valid."""
    path = folder / "config" / "subjects" / "jane.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    try:
        load_project(folder)
    except UserError as error:
        return [line.strip() for line in str(error).split("\n")[1:]]
    return []


@pytest.mark.parametrize(
    ("more", "key", "told"),
    [
        (
            "training:\n  targets: all_blocks@single=0-50\n",
            "4: subject jane: training.targets",
            "klein-4b has 20 single",
        ),
        ("training:\n  targets: all_block\n", "4: subject jane: training.targets", "did you mean 'all_blocks'?"),
        ('training:\n  targets: "(unclosed"\n', "4: subject jane: training.targets", "neither a preset nor a regular"),
        (
            'training:\n  adapter: {ranks: {"all_blocks@single=0-50": 4}}\n',
            "4: subject jane: training.adapter.ranks.all_blocks@single=0-50",
            "klein-4b has 20 single blocks",
        ),
        (
            'training:\n  adapter:\n    alphas:\n      "single_alll": 4\n',
            "6: subject jane: training.adapter.alphas.single_alll",
            "did you mean 'single_all'?",
        ),
        (
            "training:\n  adapter:\n    groups: {a: double_all, b: double_attn}\n",
            "5: subject jane: training.adapter.groups",
            "both hold transformer_blocks.0.attn",
        ),
        (
            "training:\n  targets: single_all\n  adapter: {freeze: double_all}\n",
            "5: subject jane: training.adapter.freeze",
            "matches none of the modules that training.targets 'single_all' trains",
        ),
        (
            "training:\n  rank: 4\n  adapter:\n    kind: lokr\n    lokr_factor: 7\n",
            "7: subject jane: training.adapter.lokr_factor",
            "7 does not divide transformer_blocks.0",
        ),
        (
            "phases:\n  wide: {}\n  fine:\n    training: {targets: all_blocks@double=5}\n",
            "6: subject jane: phases.fine.training.targets",
            "klein-4b has 5 double blocks. Allowed: 0 to 4",
        ),
        (
            "phases: {wide: {}, fine: {}}\nvariants:\n  main: {}\n  few: {training: {targets: all_blocks@double=5}}\n",
            "6: subject jane: variants.few.training.targets",
            "klein-4b has 5 double blocks. Allowed: 0 to 4",
        ),
        (
            "surgery:\n  quiet:\n    method: weigh-blocks\n    of: main\n    blocks: {double: 0.5, single.0-19: 1, single.70: 0}\n",
            "7: subject jane: surgery.quiet.blocks.single.70",
            "klein-4b has 20 single blocks. Allowed: 0 to 19",
        ),
    ],
)
def test_what_the_model_does_not_have_is_told_once_with_its_line(
    tmp_path: Path, more: str, key: str, told: str
) -> None:
    (found,) = mistakes(tmp_path, GOOD + more)
    assert found.startswith(f"config/subjects/jane.yaml:{key}: ") and told in found


@pytest.mark.parametrize(
    "more",
    [
        "training: {targets: all_blocks@single=8-23}\n",
        'training: {adapter: {groups: {a: "all_blocks@single=0-5", b: "all_blocks@single=8-23"}}}\n',
        "surgery: {quiet: {method: weigh-blocks, of: main, blocks: {double.7: 0.5, single.20-23: 0, other: 1}}}\n",
    ],
)
def test_blocks_of_the_larger_model_are_allowed_there_alone(tmp_path: Path, more: str) -> None:
    assert mistakes(tmp_path, GOOD + NINE + more) == []
    assert mistakes(tmp_path, GOOD + more) != []
    assert mistakes(tmp_path, GOOD + "base_model: models/my-own\n" + more) == [], "whose blocks nobody knows yet"


HUB = "models--black-forest-labs--FLUX.2-klein-"


@pytest.mark.parametrize(
    ("source", "is_distilled"),
    [
        ("black-forest-labs/FLUX.2-klein-4B", True),
        ("/data/base-models/FLUX.2-klein-4B", True),
        ("/data/base-models/FLUX.2-klein-4B/", True),
        (f"/hub/base/{HUB}9B/snapshots/0a1b2c", True),
        (f"/hub/{HUB}base-9B/snapshots/0a1b2c", False),
        ("/data/klein/my-base", False),
        ("/data/klein/mine", False),
        ("miniature", False),
    ],
)
def test_a_distilled_base_is_told_by_its_own_name(tmp_path: Path, source: str, is_distilled: bool) -> None:
    found = mistakes(tmp_path, GOOD + f"base_model: {source}\n")
    assert len(found) == is_distilled
    assert all(line.startswith("config/subjects/jane.yaml:3: subject jane: base_model: ") for line in found)
    assert mistakes(tmp_path, GOOD + f"base_model: {source}\ntraining: {{allow_distilled: true}}\n") == []


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (
            "captions: {backend: fact}",
            "captions.backend: no backend 'fact'; did you mean 'facts'? Allowed: endpoint, facts",
        ),
        (
            "faces: {backend: opencvv}",
            "faces.backend: no backend 'opencvv'; did you mean 'opencv'? Allowed: insightface, none",
        ),
        ("masks: {backend: grabcutt}", "masks.backend: no backend 'grabcutt'; did you mean 'grabcut'?"),
        (
            "evaluation: {recogniser_backend: insightfac}",
            "evaluation.recogniser_backend: no backend 'insightfac'; did you mean 'insightface'? Allowed: insightface, opencv",
        ),
    ],
)
def test_a_backend_that_nobody_registers_is_told_before_any_job(tmp_path: Path, section: str, told: str) -> None:
    (found,) = mistakes(tmp_path, GOOD + section + "\n")
    assert found.startswith(f"config/subjects/jane.yaml:3: subject jane: {told}")


def test_a_backend_of_an_installed_package_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "own_masks-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Name: own-masks\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[likeness.masks]\nown = absent_module:Masker\n")
    monkeypatch.syspath_prepend(str(package.parent))
    assert mistakes(tmp_path, GOOD + "masks: {backend: own}\n") == []
    assert "Allowed: folder, grabcut, own, sam2" in mistakes(tmp_path, GOOD + "masks: {backend: owm}\n")[0]


def test_an_edit_that_facts_cannot_caption_is_warned_of(tmp_path: Path) -> None:
    edit = "recipe: edit\ntrigger: x\npairs: data\n"
    assert mistakes(tmp_path, edit + "captions: {backend: facts}\n") == []
    assert [warning.key for warning in load_project(tmp_path).warnings] == ["captions.instruction"]
    assert mistakes(tmp_path, edit + "captions: {backend: facts, instruction: smile}\n") == []
    assert load_project(tmp_path).warnings == ()
