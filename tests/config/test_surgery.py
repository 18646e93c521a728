"""Surgery and ablation in the configuration: parents that cannot be are errors with their place, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.workflow.project import HOUSE, Project

from likeness.config.load import load_project
from likeness.config.surgery import Parent, Surgery, parent_from_text
from likeness.errors import UserError

SUBJECT = {
    "trigger": "j4ne",
    "photos": "photos",
    "training": {"steps": 200, "save_every": 50},
    "phases": {"rough": {"steps": 100}, "fine": {}},
    "variants": {"main": {}, "background": {"phases": ["rough"]}, "old": {"lora": "drawer/*.safetensors"}},
}


def write(folder, name, **keys):
    (folder / "config/subjects").mkdir(parents=True, exist_ok=True)
    (folder / f"config/subjects/{name}.yaml").write_text(yaml.safe_dump(SUBJECT | keys, sort_keys=False))


def load(folder, **keys):
    write(folder, "jane", **keys)
    return load_project(folder).project.subjects["jane"]


def mistakes(folder, **keys):
    with pytest.raises(UserError) as caught:
        load(folder, **keys)
    return str(caught.value)


def test_parents_are_written_as_text_or_in_full():
    read = lambda value: Parent.model_validate(parent_from_text(value))  # noqa: E731
    assert read("best") == Parent(best=True)
    assert read("drawer/a.safetensors") == Parent(file="drawer/a.safetensors")
    assert read("main") == Parent(variant="main")
    assert str(read({"variant": "main", "phase": "fine", "step": 50})) == "main fine step 50"
    for wrong in ({}, {"variant": "a", "best": True}, {"file": "a", "step": 3}):
        with pytest.raises(ValueError, match=r"a parent is one of|belong to a"):
            Parent.model_validate(wrong)


def test_a_sweep_over_alpha_makes_one_candidate_a_value(tmp_path):
    entry = {"method": "subtract", "of": "best", "background": "background", "alpha": [0, 0.25, 1]}
    subject = load(tmp_path, surgery={"clean": entry, "small": {"method": "resize", "of": "clean-alpha-25", "rank": 8}})
    assert list(subject.candidates) == ["clean-alpha-0", "clean-alpha-25", "clean-alpha-100", "small"]
    assert [own.alpha for own in subject.candidates.values()][:3] == [(0.0,), (0.25,), (1.0,)]
    again = Surgery.model_validate(subject.candidates["clean-alpha-25"].model_dump(mode="json"))
    assert again == subject.candidates["clean-alpha-25"]
    assert list(load(tmp_path, surgery={"clean": entry | {"alpha": 0.5}}).candidates) == ["clean"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"method": "resize", "of": "nobody", "rank": 8}, "no variant 'nobody'"),
        ({"method": "resize", "of": "old", "rank": 8}, "name the one that is meant by its path"),
        ({"method": "resize", "of": {"variant": "main", "phase": "last"}, "rank": 8}, "there are rough, fine"),
        ({"method": "resize", "of": {"variant": "background", "phase": "fine"}, "rank": 8}, "no phase 'fine'"),
        ({"method": "resize", "of": {"variant": "main", "step": 60}, "rank": 8}, "there are 50, 100, 150, 200"),
        ({"method": "resize", "of": {"variant": "main", "phase": "rough", "step": 150}, "rank": 8}, "are 50, 100$"),
        ({"method": "resize", "of": "x", "rank": 8}, "it is made of itself"),
        ({"method": "resize", "of": "gone.safetensors", "rank": 8}, "there is no LoRA file gone.safetensors"),
        ({"method": "resize", "of": "main"}, "needs `rank`, `ratio`, `frobenius` or `cumulative`"),
        ({"method": "resize", "of": "main", "ratio": 0.8}, "0.8 is below 1"),
        ({"method": "resize", "of": "main", "rank": 8, "alpha": 0.5}, "takes no `alpha`"),
        ({"method": "resize", "of": ["main", "best"], "rank": 8}, "takes one parent"),
        ({"method": "merge", "of": ["main", "best"], "weights": [1]}, "1 weights for 2 parents"),
        ({"method": "merge", "of": ["main"]}, "takes several parents"),
        ({"method": "merge", "of": ["main", "best"], "density": 0.5}, "'sum' does not read `density`; it reads none"),
        (
            {"method": "merge", "of": ["main", "best"], "combine": "dare", "convention": "mergekit"},
            "'dare' does not read `convention`; it reads `density`, `seed`",
        ),
        ({"method": "merge", "of": ["main", "best"], "combine": "magnitude", "seed": 3}, "does not read `seed`"),
        ({"method": "merge", "of": ["main", "best"], "weights": [0, 0]}, "would change nothing"),
        ({"method": "merge", "of": ["main", "best"], "weights": [1, float("nan")]}, "finite number"),
        ({"method": "average", "of": ["main", "best"], "weights": [1, 1]}, "sum to 1, not to 2"),
        ({"method": "resize", "of": "main", "rank": 8, "rule": "kohya"}, "counts from a threshold"),
        ({"method": "subtract", "of": "main", "background": "background", "alpha": float("inf")}, "finite number"),
        ({"method": "weigh-blocks", "of": "main", "blocks": {"single.5-2": 0}}, "runs backwards"),
        ({"method": "average", "of": ["main", "best"], "weights": [0.5, 0.5], "ema": 0.5}, "exclude each other"),
        ({"method": "subtract", "of": "main"}, "needs `background`"),
        ({"method": "subtract", "of": "main", "background": "background", "project": 4, "alpha": 0.5}, "not apply"),
        ({"method": "weigh-blocks", "of": "main", "blocks": {"singl.1": 0}}, "'singl.1' is no block"),
        ({"method": "melt", "of": "main"}, "'resize', 'merge'"),
    ],
)
def test_what_cannot_be_made_is_an_error_with_its_place(tmp_path, entry, message):
    text = mistakes(tmp_path, surgery={"x": entry})
    assert "config/subjects/jane.yaml:" in text and "surgery.x" in text
    import re

    assert re.search(message, text, re.MULTILINE), text


def test_circles_and_names_that_are_taken(tmp_path):
    entry = {"method": "resize", "rank": 8}
    circle = {"a": entry | {"of": "b"}, "b": entry | {"of": "c"}, "c": entry | {"of": "a"}, "d": entry | {"of": "a"}}
    text = mistakes(tmp_path, surgery=circle)
    assert all(f"surgery.{name}" in text for name in "abc") and "surgery.d" not in text
    assert "another candidate or variant" in mistakes(tmp_path, surgery={"main": entry | {"of": "best"}})
    sweep = {"method": "subtract", "of": "main", "background": "background", "alpha": [0, 1]}
    several = {"clean": sweep, "small": entry | {"of": "clean"}}
    assert "name one of clean-alpha-0, clean-alpha-100" in mistakes(tmp_path, surgery=several)
    taken = {"clean": sweep, "clean-alpha-100": entry | {"of": "best"}}
    assert "another candidate" in mistakes(tmp_path, surgery=taken)


def test_ablation_names_a_parent_that_exists(tmp_path):
    subject = load(tmp_path, ablation={"blocks": {"of": "best"}})
    assert subject.ablation["blocks"].weights == (0, 0.25, 0.5, 0.75, 1)
    assert "ablation.blocks.of: no variant 'mian'" in mistakes(tmp_path, ablation={"blocks": {"of": "mian"}})
    assert "knock-up" in mistakes(tmp_path, ablation={"blocks": {"of": "best", "modes": ["knock-up"]}})


def test_pairs_and_probes_are_checked_before_anything_starts(tmp_path):
    subject = load(tmp_path, crosstalk={"film": {"beside": "background"}}, probe={"roles": PROBE})
    assert subject.crosstalk["film"].of == Parent(best=True) and subject.probe["roles"].seeds == (1, 2)
    masked = {"beside": "background", "method": "masked"}
    assert "needs `word`" in mistakes(tmp_path, crosstalk={"film": masked})
    assert "does not take `word`" in mistakes(tmp_path, crosstalk={"film": {"beside": "main", "word": "film"}})
    text = mistakes(tmp_path, crosstalk={"film": {"of": "mian", "beside": "gone.safetensors"}})
    assert "crosstalk.film.of: no variant 'mian'" in text
    assert "there is no LoRA file gone.safetensors" in mistakes(
        tmp_path, crosstalk={"x": {"beside": "gone.safetensors"}}
    )
    assert "probe.roles.style" in mistakes(tmp_path, probe={"roles": PROBE | {"style": ""}})


def test_a_parent_with_braces_in_its_name_is_refused(tmp_path):
    for name in ("film{1}.safetensors", "film{1.safetensors"):
        (tmp_path / name).touch()
    text = mistakes(tmp_path, surgery={"x": {"method": "resize", "of": "film{1}.safetensors", "rank": 8}})
    assert "surgery.x: braces in film{1}.safetensors stand for a wildcard in a workflow; rename the file" in text
    assert load(tmp_path, surgery={"x": {"method": "resize", "of": "film{1.safetensors", "rank": 8}}).surgery["x"]


PROBE = {"prompt": "a photo of a dog", "content": "a photo of a ship", "style": "an etching of a dog"}


def test_other_subjects_as_parents(tmp_path):
    """They must be there, be others, and what they publish must not be made of what this one publishes."""
    of = lambda name: {"both": {"method": "merge", "of": ["best", {"subject": name}]}}  # noqa: E731
    write(tmp_path, "sam", surgery=of("ann"))
    write(tmp_path, "ann")
    assert load(tmp_path, surgery=of("sam"), crosstalk={"sam": {"beside": {"subject": "sam"}}}).surgery
    assert "no subject 'sma'; did you mean 'sam'" in mistakes(tmp_path, surgery=of("sma"))
    assert "is this subject itself" in mistakes(tmp_path, crosstalk={"x": {"beside": {"subject": "jane"}}})
    write(tmp_path, "ann", surgery=of("jane"))
    text = mistakes(tmp_path, surgery=of("sam"))
    assert "subject jane: surgery: what it publishes is made of what itself publishes, over sam and ann" in text
    write(tmp_path, "ann", crosstalk={"jane": {"beside": {"subject": "jane"}}})
    assert load(tmp_path, surgery=of("sam"))


def test_a_ratio_below_one_explains_itself(tmp_path):
    text = mistakes(tmp_path, surgery={"x": {"method": "resize", "of": "main", "ratio": 0.8}})
    assert "the largest singular value over the smallest that is kept" in text and "write `frobenius: 0.8`" in text


def test_a_resize_below_rank_four_is_warned_of(tmp_path):
    write(tmp_path, "jane", surgery={"tiny": {"method": "resize", "of": "main", "rank": 3}})
    texts = [str(warning) for warning in load_project(tmp_path).warnings]
    assert any("surgery.tiny" in text and "rank 3 is below 4" in text for text in texts), texts


def test_a_candidate_can_be_picked_by_hand(tmp_path):
    small = {"small": {"method": "resize", "of": "best", "rank": 8}}
    subject = load(tmp_path, surgery=small, pick={"variant": "small", "phase": "surgery", "step": 0})
    assert subject.pick and subject.pick.variant == "small"
    assert "no variant 'smal'" in mistakes(tmp_path, surgery=small, pick={"variant": "smal", "phase": "x", "step": 0})


def test_the_example_of_the_docs_is_whole(tmp_path: Path) -> None:
    """As it is printed, beside the second subject and the file that it names."""
    (tmp_path / "drawer").mkdir()
    (tmp_path / "drawer" / "film-look.safetensors").touch()
    text = (HOUSE / "docs" / "surgery.md").read_text("utf-8").partition("```yaml\n")[2].partition("```")[0]
    project = Project(tmp_path)
    project.configure(text, "jane")
    project.configure("recipe: character\ntrigger: s4m\nphotos: data/sam\n", "sam")
    subject = load_project(tmp_path).project.subjects["jane"]
    assert {"small", "clean", "both"} <= set(subject.surgery) and subject.ablation and subject.probe
