"""Configuration: layers, and every mistake at once with its file, line and nearest key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.config.conftest import GOOD, complaint, write

from likeness.config.base import NAME_PATTERN, RESERVED_NAMES
from likeness.config.load import HOUSE, load_project
from likeness.errors import UserError
from likeness.training.needs import memory_told, time_told


def test_a_bare_clone_has_no_subjects_and_no_errors(tmp_path: Path) -> None:
    assert load_project(tmp_path).project.subjects == {}


def test_five_mistakes_are_reported_with_lines_and_nearest_keys(folder: Path) -> None:
    write(
        folder,
        "recipe: character\ntriger: j4ne\nphotos: data\ntraining:\n  rank: -3\n  targts: all\n  sigma: {distribution: sigmod}\nheld_out: two\n",  # noqa: E501
    )
    text = complaint(folder)
    assert text.startswith("6 mistakes")
    for expected in (
        "config/subjects/jane.yaml:2: subject jane: triger: unknown key; did you mean 'trigger'?",
        "config/subjects/jane.yaml:5: subject jane: training.rank: input should be greater than or equal to 1; found -3",
        "config/subjects/jane.yaml:6: subject jane: training.targts: unknown key; did you mean 'targets'?",
        "config/subjects/jane.yaml:7: subject jane: training.sigma.distribution: input should be 'uniform', 'sigmoid' or 'shifted'",
        "config/subjects/jane.yaml:8: subject jane: held_out",
        "subject jane: trigger: missing",
    ):
        assert expected in text


def test_mistakes_of_several_files_come_together(folder: Path) -> None:
    write(folder, GOOD + "preset: herst\n", "one")
    write(folder, "recipe: caracter\ntrigger: x\nphotos: a\n", "two")
    write(folder, "trigger: [x\n", "three")
    (folder / "config" / "config.yaml").write_text("shards: 1000\n", encoding="utf-8")
    text = complaint(folder)
    assert "one.yaml:4: preset: no preset 'herst'; did you mean 'herbst'?" in text
    assert "two.yaml:1: recipe: no recipe 'caracter'; did you mean 'character'?" in text
    assert "three.yaml:2: not valid YAML" in text
    assert "config/config.yaml:1: shards: input should be less than or equal to 256; found 1000" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "trigger: twice\n", "jane.yaml:4: trigger: stands twice; the first is on line 2"),
        (GOOD + "variants: {base: {}}\n", "'base' is reserved"),
        (GOOD + "phases: {First: {}}\n", "'First' is not a name"),
        (GOOD + "export: [simpletunr]\n", "export.simpletunr: unknown trainer"),
        (GOOD + "variants: {a: {training: {rnk: 3}}}\n", "variants.a.training.rnk: unknown key; did you mean 'rank'?"),
        (GOOD + "pick: {variant: nope, phase: main, step: 1}\n", "pick.variant: no variant 'nope'"),
        ("recipe: edit\ntrigger: x\nphotos: a\n", "pairs: missing; recipe 'edit' needs"),
        (GOOD + "base_model: black-forest-labs/FLUX.2-klein-9B\n", "is distilled"),
        (GOOD + 'training: {targets: "transformer_blocks\\\\.12\\\\.attn\\\\.to_q"}\n', "klein-4b has 5 double blocks"),
    ],
)
def test_what_cannot_work_is_an_error(folder: Path, text: str, expected: str) -> None:
    write(folder, text)
    assert expected in complaint(folder)


@pytest.mark.parametrize("name", ["Jane", "my_cat", "report", "models", "all", "curate", "jane.v2"])
def test_names_of_subjects_are_checked_with_all_else(folder: Path, name: str) -> None:
    write(folder, GOOD + "held_out: two\n", name)
    (folder / "config" / "config.yaml").write_text(f"shards: 0\nsubjects:\n  {name}-: {{}}\n  {name}: {{}}\n", "utf-8")
    text = complaint(folder)
    assert f"config/subjects/{name}.yaml: the file's name is the subject's: {name!r} is " in text
    assert f"config/config.yaml:4: subjects: {name!r} is " in text
    assert "config/config.yaml:1: shards" in text


def test_no_subject_is_called_like_a_rule() -> None:
    files = [HOUSE / "Snakefile", *(HOUSE / "rules").glob("*.smk")]
    rules = [name for file in files for name in re.findall(r"^rule (\w+):", file.read_text("utf-8"), re.MULTILINE)]
    assert len(rules) > 30
    assert {name for name in rules if re.fullmatch(NAME_PATTERN, name)} <= RESERVED_NAMES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + 'class_word: "\x07"\n', "jane.yaml:4: holds the control character '\\x07'; remove it"),
        (GOOD + "reference: 2024-13-45\n", "jane.yaml:4: reference: YAML takes '2024-13-45' for a timestamp"),
        (GOOD + "photo:\n  x: [1, !env X]\n", "jane.yaml:5: photo.x.1: the tag !env is not known here"),
        (GOOD + "held_out: !!bool x\n", "jane.yaml:4: held_out: YAML takes 'x' for a bool"),
        (GOOD + "held_out: !!int x\n", "jane.yaml:4: held_out: YAML takes 'x' for a int"),
        (GOOD + "photo: &a [*a]\n", "jane.yaml: nests too deeply, or an alias"),
        (GOOD + f"photo: {'[' * 2000}\n", "jane.yaml: nests too deeply, or an alias"),
    ],
)
def test_values_that_yaml_cannot_read_are_mistakes_like_others(folder: Path, text: str, expected: str) -> None:
    write(folder, text)
    (folder / "config" / "config.yaml").write_text("shards: 0\n", "utf-8")
    found = complaint(folder)
    assert expected in found
    assert "config/config.yaml:1: shards" in found


def test_defaults_of_the_command_line_lie_under_the_subjects(folder: Path) -> None:
    (folder / "config" / "config.yaml").write_text("shards: 2\ndefaults:\n  training: {rank: 8, steps: 99}\n", "utf-8")
    write(folder, GOOD + "training: {batch_size: 2}\n")
    given = {"shards": 3, "defaults": {"training": {"steps": 7, "batch_size": 5}, "preset": "herbst"}}
    project = load_project(folder, overrides=given).project
    training = project.subjects["jane"].training
    assert (project.shards, training.rank, training.steps, training.batch_size) == (3, 8, 7, 2)
    assert training.optimizer.weight_decay == 1e-5


def test_mistakes_of_the_command_line_are_said_to_be_its_own(folder: Path) -> None:
    (folder / "config" / "config.yaml").write_text("shards: 2\ndefaults: {held_out: 1}\n", "utf-8")
    write(folder, GOOD)
    with pytest.raises(UserError) as caught:
        load_project(folder, overrides={"shards": 0, "shardz": 1, "defaults": {"held_out": -1, "preset": "herst"}})
    text = str(caught.value)
    for expected in (
        "shards: input",
        "shardz: unknown key",
        "subject jane: held_out: input",
        "preset: no preset 'herst'",
    ):
        assert f"--config: {expected}" in text
    with pytest.raises(UserError, match="--config: defaults: must hold keys and values; found 3"):
        load_project(folder, overrides={"defaults": 3})


def test_a_variant_is_held_against_the_phases_that_it_runs(folder: Path) -> None:
    phases = "phases: {a: {}, b: {training: {schedule: {name: cosine}}}}\n"
    averaged = "training: {optimizer: {name: schedulefree}}"
    write(folder, GOOD + phases + f"variants: {{main: {{}}, few: {{phases: [a], {averaged}}}}}\n")
    assert set(load_project(folder).project.subjects["jane"].variants) == {"main", "few"}
    write(folder, GOOD + phases + f"variants: {{main: {{}}, few: {{{averaged}}}}}\n")
    assert "schedule.name (cosine) must be constant" in complaint(folder)
    assert "(in phase b)" in complaint(folder)


SAVED = "training: {steps: 300, save_every: 100}\nphases: {a: {}, b: {steps: 150}}\n"
PICKED = (
    SAVED
    + "variants: {main: {}, few: {phases: [a]}, old: {lora: '*.safetensors'}, long: {training: {steps: auto}}}\n"
    + "surgery: {small: {method: resize, of: main, rank: 2}}\n"
)


@pytest.mark.parametrize(
    ("pick", "expected"),
    [
        ("variant: mian, phase: a, step: 100", "pick.variant: no variant 'mian'; did you mean 'main'?"),
        ("variant: main, phase: nope, step: 100", "pick.phase: 'main' has no phase 'nope'; Allowed: a, b"),
        ("variant: few, phase: b, step: 100", "pick.phase: 'few' has no phase 'b'; Allowed: a"),
        ("variant: old, phase: a, step: 0", "pick.phase: 'old' has no phase 'a'; Allowed: files"),
        ("variant: small, phase: a, step: 0", "pick.phase: 'small' has no phase 'a'; Allowed: surgery"),
        ("variant: main, phase: surgery, step: 0", "pick.phase: 'main' has no phase 'surgery'; Allowed: a, b"),
        (
            "variant: main, phase: a, step: 150",
            "pick.step: main/a saves no checkpoint at step 150; Allowed: 100, 200, 300",
        ),
        ("variant: main, phase: b, step: 200", "pick.step: main/b saves no checkpoint at step 200; Allowed: 100, 150"),
    ],
)
def test_a_pick_that_no_run_can_make_is_refused(folder: Path, pick: str, expected: str) -> None:
    write(folder, GOOD + PICKED + f"pick: {{{pick}}}\n")
    assert expected in complaint(folder)


@pytest.mark.parametrize(
    "pick",
    [
        "variant: main, phase: b, step: 150",
        "variant: old, phase: files, step: 0",
        "variant: small, phase: surgery, step: 0",
        "variant: long, phase: a, step: 700",
    ],
)
def test_a_pick_that_a_run_can_make_is_kept(folder: Path, pick: str) -> None:
    write(folder, GOOD + PICKED + f"pick: {{{pick}}}\n")
    assert load_project(folder).project.subjects["jane"].pick is not None


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("likenes", "choice.metric: no metric 'likenes'; did you mean 'likeness'?"),
        ("head_ratio", "choice.metric: head_ratio is best near 1, so that neither its highest nor its lowest value"),
        ("target_error", "choice.metric: target_error is null for recipe 'character'; it is for edit"),
    ],
)
def test_a_metric_that_nothing_can_be_ranked_by_is_refused(folder: Path, metric: str, expected: str) -> None:
    write(folder, GOOD + f"choice: {{metric: {metric}}}\n")
    assert f"jane.yaml:4: subject jane: {expected}" in complaint(folder)


@pytest.mark.parametrize("metric", ["null", "csim", "shift_px"])
def test_other_metrics_can_rank(folder: Path, metric: str) -> None:
    write(folder, GOOD + f"choice: {{metric: {metric}}}\n")
    assert load_project(folder).project.subjects["jane"].choice.metric == (None if metric == "null" else metric)


def test_layers_merge_sections_and_replace_named_maps(folder: Path) -> None:
    (folder / "config" / "config.yaml").write_text("defaults:\n  training: {rank: 8, steps: 99}\n", encoding="utf-8")
    write(folder, GOOD + "preset: herbst\ntraining: {steps: 7}\nprompts: {one: {text: '{trigger}'}}\n")
    subject = load_project(folder).project.subjects["jane"]
    assert (subject.training.rank, subject.training.steps, subject.training.alpha) == (8, 7, 64)
    assert subject.training.optimizer.weight_decay == 1e-5
    assert subject.training.masked_loss.kind == "person"
    assert list(subject.prompts) == ["one"]


OWN_FACES = "training: {masked_loss: {kind: face}}"


@pytest.mark.parametrize(
    ("kind", "more", "place"),
    [
        ("null", f"variants: {{main: {{}}, other: {{{OWN_FACES}}}}}\nphases: {{a: {{}}, b: {{}}}}\n", "variants.other"),
        ("person", f"variants: {{main: {{}}, other: {{{OWN_FACES}}}}}\n", "variants.other"),
        (
            "person",
            f"phases: {{wide: {{}}, few: {{{OWN_FACES}}}}}\nvariants: {{main: {{}}, other: {{}}}}\n",
            "phases.few",
        ),
    ],
)
def test_another_mask_than_the_samples_carry_is_told_once(folder: Path, kind: str, more: str, place: str) -> None:
    write(folder, GOOD + f"masks: {{kinds: [face, person]}}\ntraining: {{masked_loss: {{kind: {kind}}}}}\n" + more)
    found = complaint(folder)
    key = f"{place}.training.masked_loss.kind"
    assert found.startswith("1 mistake")
    assert (
        f"jane.yaml:6: subject jane: {key}: face is not the subject's own (training.masked_loss.kind: {kind})" in found
    )
    assert "Make two subjects" in found


PRODIGY = "{optimizer: {name: prodigy}}"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (f"training: {PRODIGY}\n", "jane.yaml:4: subject jane: training: learning_rate (0.0001) must be"),
        (
            f"variants: {{main: {{}}, own: {{training: {PRODIGY}}}}}\n",
            "variants.own.training: learning_rate (0.0001) must be",
        ),
        (
            "preset: prodigy\nphases: {first: {}, second: {learning_rate: 2.0e-5}}\n",
            "variants.main.training: learning_rate (2e-05) must be",
        ),
        ("preset: prodigy\nvariants: {slow: {training: {learning_rate: 0.05}}}\n", "learning_rate (0.05) must be"),
    ],
)
def test_a_rate_at_which_prodigy_learns_nothing_is_refused_wherever_it_is_set(
    folder: Path, more: str, expected: str
) -> None:
    write(folder, GOOD + more)
    found = complaint(folder)
    assert found.startswith("1 mistake") and expected in found and "set learning_rate: 1.0" in found
    assert ("(in phase second)" in found) == ("second" in more)


def test_prodigy_may_be_given_a_rate_of_its_own_size(folder: Path) -> None:
    write(folder, GOOD + "preset: prodigy\nphases: {first: {}, second: {learning_rate: 0.1}}\n")
    subject = load_project(folder).project.subjects["jane"]
    assert [subject.training_of("main", phase).learning_rate for phase in subject.phases] == [1.0, 0.1]


def test_a_variant_or_a_phase_may_leave_the_mask_out(folder: Path) -> None:
    plain = "training: {masked_loss: {kind: null}}"
    write(folder, GOOD + f"phases: {{wide: {{}}, few: {{{plain}}}}}\nvariants: {{main: {{}}, other: {{{plain}}}}}\n")
    subject = load_project(folder).project.subjects["jane"]
    kinds = [
        subject.training_of(name, phase).masked_loss.kind for name in ("main", "other") for phase in subject.phases
    ]
    assert kinds == ["person", None, None, None]


def test_inline_subjects_of_a_configfile_stand_instead_of_the_folder(folder: Path) -> None:
    write(folder, GOOD)
    other = folder / "other.yaml"
    other.write_text("shards: 2\nsubjects:\n  anna: {trigger: 4nna, photos: data/anna}\n", encoding="utf-8")
    project = load_project(folder, [other], {"shards": 3}).project
    assert (list(project.subjects), project.shards) == (["anna"], 3)


def test_phases_change_steps_and_rate_of_a_variant(folder: Path) -> None:
    write(
        folder,
        GOOD + "phases: {a: {steps: 5}, b: {learning_rate: 0.5}}\nvariants: {v: {training: {steps: 9, rank: 2}}}\n",
    )
    subject = load_project(folder).project.subjects["jane"]
    assert [subject.training_of("v", phase).steps for phase in "ab"] == [5, 9]
    assert subject.training_of("v", "b").learning_rate == 0.5
    assert subject.training_of("v", "a").resolved_alpha == 2


@pytest.mark.parametrize("path", sorted((HOUSE / "config" / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_pass_without_warnings_and_state_what_to_expect(folder: Path, path: Path) -> None:
    write(folder, path.read_text(encoding="utf-8"), path.stem)
    loaded = load_project(folder)
    assert path.stem in loaded.project.subjects and loaded.warnings == ()
    told = " ".join(path.read_text(encoding="utf-8").replace("\n#", "").split())
    subject = loaded.project.subjects[path.stem]
    assert f"Estimated, not measured: {memory_told(subject)}; {time_told(subject)}." in told


@pytest.mark.parametrize("path", sorted((HOUSE / "config" / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_valid_and_name_their_source(folder: Path, path: Path) -> None:
    data = "pairs" if path.stem == "bfs" else "photos"
    recipe = "edit" if path.stem == "bfs" else "character"
    write(folder, f"recipe: {recipe}\ntrigger: x\n{data}: a\npreset: {path.stem}\n")
    assert load_project(folder).project.subjects["jane"].preset == [path.stem]
    assert path.read_text(encoding="utf-8").startswith("about:")


def test_other_trainers_of_variants(folder: Path) -> None:
    """What is wrong with them is said at once, each with its key."""
    write(
        folder,
        GOOD
        + "trainers:\n  fal: {command: x}\n  ai-tolkit: {command: x}\n"
        + "phases:\n  one: {}\n  two: {}\n"
        + "variants:\n  a: {trainer: fal, phases: [one]}\n  b: {trainer: simpltuner, phases: [one]}\n"
        + "  c: {trainer: simpletuner}\n",
    )
    text = complaint(folder)
    for expected in (
        "jane.yaml:5: subject jane: trainers.fal: no trainer that runs here",
        "jane.yaml:6: subject jane: trainers.ai-tolkit: no trainer that runs here; did you mean 'ai-toolkit'?",
        "jane.yaml:11: subject jane: variants.a.trainer: no trainer that runs here: 'fal'",
        "jane.yaml:12: subject jane: variants.b.trainer: no trainer that runs here: 'simpltuner'; did you mean 'simpletuner'?",
    ):
        assert expected in text, text
    write(folder, GOOD + "phases:\n  one: {}\n  two: {}\nvariants:\n  c: {trainer: simpletuner}\n  e: {trainer: fal}\n")
    text = complaint(folder)
    for expected in (
        "jane.yaml:8: subject jane: variants.c.trainer: simpletuner has no command; say how it is started on this machine",
        "variants.c.trainer: simpletuner starts from scratch, but phases.two.init is 'previous'; give the variant one phase",
        "variants.e.trainer: no trainer that runs here: 'fal'",
    ):
        assert expected in text, text
    write(folder, GOOD + "variants:\n  d: {trainer: onetrainer, lora: x}\n")
    assert "variants.d: a variant is either `lora:` files or trained" in complaint(folder)


def test_a_lora_to_start_from_that_is_not_there_is_a_mistake(folder: Path) -> None:
    write(folder, GOOD + "phases:\n  one: {}\n  two: {init: previous}\n  three:\n    init: loras/start.safetensors\n")
    text = complaint(folder)
    assert text.startswith("1 mistake in")
    assert "jane.yaml:8: subject jane: phases.three.init: there is no LoRA file loras/start.safetensors" in text
    (folder / "loras").mkdir()
    (folder / "loras" / "start.safetensors").touch()
    phases = load_project(folder).project.subjects["jane"].phases
    assert {name: phase.file for name, phase in phases.items()} == {
        "one": None,
        "two": None,
        "three": "loras/start.safetensors",
    }


def test_a_variant_of_another_trainer(folder: Path) -> None:
    (folder / "config" / "config.yaml").write_text(
        "defaults: {trainers: {simpletuner: {command: simpletuner train, environment: {PATH: /st/bin}}}}\n",
        encoding="utf-8",
    )
    write(folder, GOOD + "variants:\n  ours: {}\n  theirs: {trainer: simpletuner, training: {rank: 8}}\n")
    subject = load_project(folder).project.subjects["jane"]
    assert set(subject.trained_variants) == {"ours", "theirs"}
    assert set(subject.native_variants) == {"ours"}
    assert subject.training_of("theirs", "main").rank == 8
    assert subject.trainers["simpletuner"].environment == {"PATH": "/st/bin"}


def test_two_files_of_one_subject_name_each_other(folder: Path) -> None:
    write(folder, GOOD)
    (folder / "config" / "subjects" / "jane.yml").write_text(GOOD, "utf-8")
    found = complaint(folder)
    assert "config/subjects/jane.yml: subject 'jane' also stands in config/subjects/jane.yaml; keep one" in found
    (folder / "config" / "subjects" / "jane.yml").unlink()
    (folder / "config" / "config.yaml").write_text("shards: 2\nsubjects:\n  jane: {trigger: x, photos: a}\n", "utf-8")
    assert "jane.yaml: subject 'jane' also stands in config/config.yaml:3; keep one of them" in complaint(folder)


def test_paths_may_begin_in_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jo")
    more = "photos: [~/jane photos, {path: a~/b, masks: ~/m}]\nbase_model: ~/models/klein-base\nreference: ~/me.jpg\n"
    write(folder, "trigger: j4ne\n" + more)
    subject = load_project(folder).project.subjects["jane"]
    found = [*(one.path for one in subject.photos), subject.photos[1].masks, subject.base_model.source]
    assert found == ["/home/jo/jane photos", "a~/b", "/home/jo/m", "~/models/klein-base"]
    assert subject.reference == ["/home/jo/me.jpg"]
