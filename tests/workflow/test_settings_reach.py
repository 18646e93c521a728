"""Every setting starts exactly the stages that read it: each leaf of the configuration is changed, and every job compared.

No workflow runs: what Snakemake compares of a job are its params and the names of its inputs, and both come from `Plan`.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from functools import cache
from itertools import product
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from tests.workflow.project import HOUSE

from likeness.config.load import Loaded, load_project
from likeness.config.messages import plain_type
from likeness.config.project import Project
from likeness.config.subject import Subject
from likeness.faces.pack_folder import NEEDED_FILES
from likeness.workflow import Plan

Path_ = tuple[str, ...]

CONFIG = """\
subjects:
  robin:
    recipe: character
    trigger: r0bin
    photos: [{path: data/robin, masks: data/robin-masks}]
    reference: data/reference.png
    faces: {recogniser: arcface.onnx}
    quality: {body_pose: vitpose}
    captions: {backend: endpoint, url: "http://localhost:1"}
    regularisation: {photos: [{path: data/people}], drawn: 3}
    phases: {main: {}, fine: {top: 3}}
    export: {simpletuner: {}}
    variants: {main: {}, wide: {training: {rank: 8}}, old: {lora: drawer/one.safetensors}, st: {trainer: simpletuner, phases: [main]}}
    trainers: {simpletuner: {command: train, environment: {PATH: bin}}, ai-toolkit: {command: train}}
    prompts: {garden: {text: "{trigger} in a garden"}, kitchen: {text: "{trigger} in a kitchen"}}
    evaluation: {distilled_model: distilled, lpips: alex.pth, clip: clip, body_pose: vitpose}
    pick: {variant: main, phase: main, step: 250}
    training:
      adapter: {orthogonal: {concept: 1}}
      masked_loss: {kind: person}
      samples: {prompts: [a person]}
      targets_from: {table: elsewhere.parquet}
      losses:
        output_preservation: {}
        prior_preservation: {}
        masked_prior: {}
        slider: {target: a person, positive: an old person, negative: a young person}
        identity: {model: arcface.onnx}
        lpips: {model: vgg.pth}
        contrastive: {model: clip}
    surgery:
      small: {method: resize, of: drawer/one.safetensors, rank: 8}
      least: {method: resize, of: best, rank: 8}
      ratio: {method: resize, of: main, ratio: 20}
      frobenius: {method: resize, of: main, frobenius: 0.9}
      cumulative: {method: resize, of: main, cumulative: 0.9}
      clean: {method: subtract, of: main, background: {variant: main, phase: main}, alpha: 0.5}
      out: {method: subtract, of: main, background: main, project: 4}
      both: {method: merge, of: [main, wide], combine: ties}
      drawn: {method: merge, of: [main, wide], combine: dare}
      mean: {method: average, of: [main, wide], weights: [0.5, 0.5]}
      moving: {method: average, of: [main, wide], ema: 0.5}
      face: {method: weigh-blocks, of: main, blocks: {single: 0}}
    ablation:
      blocks: {of: {variant: main, phase: main}}
    crosstalk:
      film: {of: {variant: main, phase: main}, beside: {variant: wide, phase: main}, method: masked, word: film}
    probe:
      roles: {prompt: a photo of a dog, content: a photo of a ship, style: an etching of a dog}
  swap:
    recipe: edit
    trigger: sw4p
    pairs: [{path: data/swap}]
    captions: {instruction: swap the face}
    training: {losses: {image_slider: {prompt: a person}}}
    phases: {main: {}, fine: {where: train_loss_percentile < 90, losses_of: main, nested: false}}
    variants: {main: {}, wide: {}}
"""
FILES = (
    "data/people/a.png",
    "data/robin/a.png",
    "data/robin/a.txt",
    "data/robin/b.png",
    "data/swap/1_start.png",
    "data/swap/1_end.png",
)
MORE_FILES = (
    "data/swap/start/1.png",
    "data/swap/end/1.png",
    "drawer/one.safetensors",
    "drawer/two.safetensors",
    "elsewhere/c.png",
)
KEYS = {
    "subjects": "robin",
    "phases": "fine",
    "export": "simpletuner",
    "variants": "wide",
    "prompts": "garden",
    "trainers": "simpletuner",
    "ablation": "blocks",
    "crosstalk": "film",
    "probe": "roles",
}
"""Which entry of a named map is changed; of a list it is the first."""
SURGERY_OF = {
    "method": "mean",
    "rule": "ratio",
    "weights": "mean",
    "ema": "moving",
    "combine": "both",
    "density": "both",
    "convention": "both",
    "seed": "drawn",
    "alpha": "clean",
    "background": "clean",
    "project": "out",
    "blocks": "face",
    **{name: name for name in ("ratio", "frobenius", "cumulative")},
}
"""Which surgery is changed by a key that not every method takes."""

OTHER: dict[str, Any] = {
    "defaults": {"held_out": 3},
    "recipe": "style",
    "photos.*.path": "elsewhere",
    "regularisation.photos.*.path": "elsewhere",
    "regularisation.drawn": 4,
    "pairs.*.path": "elsewhere",
    "pairs.*.roles": {"source": "start", "target": "end"},
    "pairs.*.table": "pairs.csv",
    "masks.kinds": ["head", "person"],
    "masks.grow_px": {"head": 4},
    "captions.backend": "facts",
    "captions.url": "http://localhost:2",
    "captions.instruction": "swap the head",
    "phases.*.training": {"rank": 16},
    "phases.*.losses_of": "wide",
    "training.targets_from.ablation": "blocks",
    "phases.*.balance": {"close": 0.5, "half": 0.5},
    "export.*.phases": ["main"],
    "export.*.overrides": {"seed": 7},
    "training.alpha": 5.0,
    "training.masked_loss.kind": "head",
    "training.resolutions_px": [512],
    "training.offload": ["vae"],
    "training.buckets.max_aspect": 3.0,
    "variants.*.lora": "drawer/*.safetensors",
    "variants.*.training": {"rank": 16},
    "variants.*.phases": ["main"],
    "surgery.*.method": "merge",
    "surgery.*.of": ["drawer/two.safetensors"],
    "surgery.*.weights": [0.3, 0.7],
    "surgery.*.alpha": [0.7],
    "surgery.*.blocks": {"single": 0.5},
    "ablation.*.modes": ["knock-in"],
    **{
        f"{parent}.{key}": value
        for parent in ("surgery.*.background", "ablation.*.of", "crosstalk.*.of", "crosstalk.*.beside")
        for key, value in {
            "variant": "wide",
            "phase": "fine",
            "step": 250,
            "file": "drawer/two.safetensors",
            "best": True,
            "subject": "swap",
        }.items()
    },
    "crosstalk.*.beside.variant": "main",
    "training.adapter.ranks": {r"transformer_blocks\.0\..*": 8},
    "training.adapter.alphas": {r"transformer_blocks\.0\..*": 8.0},
    "training.adapter.groups": {"style": "double_attn"},
    "variants.*.trainer": "ai-toolkit",
    "trainers.*.environment": {"PATH": "elsewhere"},
    "trainers.*.overrides": {"seed": 7},
    "pick.variant": "wide",
    "pick.phase": "fine",
    "pick.step": 500,
    "training.save_every": 125,
    "choice.metric": "csim",
}
"""Other values where the next one up would not be valid."""

PAGES = {"write_config", "write_curation", "write_report"}
"""They show all settings of all subjects."""
SHARDED = {"index_photos", "index_pairs", "detect_faces", "make_masks", "measure_quality", "write_captions"}
MERGES = {"merge_photos", "merge_faces", "merge_masks", "merge_quality", "merge_captions"}
DRAWN = {"score_base", "score_checkpoints", "score_files", "score_finalists"}
MEASURED = {"ablate_lora", "measure_crosstalk"}
SURGERY = {"make_surgery", *MEASURED}
SCORES = {*DRAWN, *MEASURED}
PROBED = {*SCORES, "probe_blocks"}
"""The probe draws as well, but with prompts of its own, by the base alone, and nothing of its images is scored."""
TRAINING = {"train_lora", "train_external", "export_dataset", "publish_lora"}
WITH_ITEMS = {
    "draw_class_images",
    "index_regularisation",
    *SHARDED,
    "merge_faces",
    "merge_masks",
    "export_dataset",
    "encode_samples",
    "train_lora",
    "train_external",
    *PROBED,
    *SURGERY,
}
CAPTIONS = {"write_captions", "merge_captions"}
CHOICE = {"choose_checkpoint", "score_finalists", "make_surgery"}
"""Of the measurements none starts from `best`, which is found by the choice."""

READ_BY: dict[str, set[str]] = {
    "shards": {"index_photos", "index_pairs", *SHARDED, *MERGES},
    "store": {*WITH_ITEMS, "publish_lora", "write_curation", "write_report"},
    "offline": {
        *SHARDED,
        *MERGES,
        "draw_class_images",
        "encode_samples",
        "train_lora",
        "train_external",
        "publish_lora",
        *PROBED,
        *SURGERY,
    }
    - {"index_photos", "index_pairs", "merge_photos"},
    "cpu_threads": {"detect_faces", "make_masks", "merge_masks", *CAPTIONS, "draw_class_images", "encode_samples"},
    "trigger": {*CAPTIONS, "encode_samples", "export_dataset", "train_external", *PROBED, "publish_lora"},
    "class_word": {
        *CAPTIONS,
        "draw_class_images",
        "encode_samples",
        "export_dataset",
        "train_external",
        *PROBED,
        "publish_lora",
    },
    "recipe": {*CAPTIONS, "decide_phases", "export_dataset", "train_external", *SCORES, *CHOICE, "publish_lora"},
    "photos": {"index_photos", "merge_photos"},
    "photos.*.path": {"index_photos", "merge_photos", "write_captions"},
    "pairs": {"index_pairs", "merge_photos"},
    "reference": {"merge_faces"},
    "base_model": {*TRAINING, "draw_class_images", "encode_samples", *PROBED, *SURGERY},
    "regularisation": {"draw_class_images"},
    "regularisation.photos": {"index_regularisation"},
    "regularisation.caption": {"draw_class_images", "encode_samples"},
    "evaluation.precision": {*PROBED, "draw_class_images"},
    "held_out": {"decide_phases"},
    "always": {"decide_phases"},
    "never": {"decide_phases"},
    "photo": {"index_photos", "merge_photos", "index_regularisation"},
    "photo.near_duplicate_bits": {"merge_photos"},
    "faces": {"detect_faces", "merge_faces"},
    "faces.min_identity": {"merge_faces", "decide_phases"},
    "masks": {"make_masks", "merge_masks"},
    "quality": {"measure_quality", "merge_quality"},
    "quality.light_distance": {"merge_quality"},
    "quality.background_distance": {"merge_quality"},
    "limits": {"decide_phases"},
    "captions": CAPTIONS,
    "phases": {"decide_phases"},
    "phases.*.losses_of": {"refine_phase"},
    "phases.*.init": {"train_lora"},
    "phases.*.steps": {"train_lora", "export_dataset"},
    "phases.*.learning_rate": {"train_lora", "export_dataset"},
    "phases.*.training": {"train_lora", "export_dataset"},
    "training.targets_from": TRAINING,
    "training.targets_from.ablation": {*TRAINING, "ablate_lora"},
    "export.*.overrides": {"export_dataset"},
    "export.*.phases": {"export_dataset"},
    "training": TRAINING,
    "training.buckets": {*TRAINING, "encode_samples", *SCORES},
    "training.buckets.diptych": {
        *("train_lora", "publish_lora", "encode_samples", "score_base", "score_checkpoints", "score_finalists")
    },
    "training.masked_loss.kind": {*TRAINING, "decide_phases", "encode_samples"},
    "training.held_out_sigmas": {*TRAINING, "encode_samples"},
    "training.samples.prompts": {*TRAINING, "encode_samples"},
    "training.flip": {*TRAINING, "encode_samples"},
    "training.resolutions_px": {*TRAINING, "encode_samples"},
    "training.masked_loss.unmasked_weight": {*TRAINING, "encode_samples"},
    "training.masked_loss.inverted": {*TRAINING, "encode_samples"},
    **{
        f"training.losses.slider.{key}": {*TRAINING, "encode_samples"}
        for key in ("target", "positive", "negative", "preserve")
    },
    "training.losses.image_slider": {"train_lora", "publish_lora"},
    "training.losses.image_slider.prompt": {"train_lora", "publish_lora", "encode_samples"},
    "variants.*.training": {"train_lora"},
    "variants.*.phases": {
        *("encode_samples", "train_lora", "score_checkpoints", "score_finalists", "choose_checkpoint"),
        *("publish_lora", "make_surgery"),
    },
    "variants.*.trainer": {"train_external"},
    "trainers": {"train_external"},
    "variants.*.lora": {"score_files", "score_finalists", "make_surgery", "publish_lora"},
    "prompts": {*SCORES, "export_dataset"},
    "prompts.*.split": SCORES,
    "prompts.*.kind": SCORES,
    "evaluation": SCORES,
    **{
        f"evaluation.{key}": PROBED
        for key in (
            *("sampling_steps", "guidance_scale", "width_px", "height_px"),
            *("batch_size", "clip", "cpu_threads"),
        )
    },
    "evaluation.strengths": {"score_finalists"},
    "evaluation.finalists": {"choose_checkpoint", "score_finalists"},
    "evaluation.distilled_model": {"score_finalists"},
    "choice": CHOICE,
    "pick": {"choose_checkpoint"},
    "surgery": {"make_surgery"},
    "ablation": {"ablate_lora"},
    "crosstalk": {"measure_crosstalk"},
    "probe": {"probe_blocks"},
}
"""Which stages read a setting, beside the pages; the longest prefix of its path counts."""

FOR_SCHEDULING = ("project.gpus_per_job", "gpus_of_masks", "gpus_of_captions", "gpus_of_training")

REACHES_NOTHING = {
    "gpus_per_job": "how many GPUs a job waits for is the scheduler's business and changes no result",
    "defaults": "is laid under every subject, where its keys count",
    "subjects.*.preset": "is laid under the subject, where its keys count; the pages name it",
}


def leaves(model: type[BaseModel], path: Path_ = ()) -> Iterator[tuple[Path_, FieldInfo]]:
    """Every setting that is no section, with its path; `*` stands for any name or place."""
    for name, field in model.model_fields.items():
        kind = plain_type(field.annotation)
        arguments = typing.get_args(kind)
        inner = plain_type(arguments[-1]) if arguments else kind
        here = (*path, name)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, here)
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, (*here, "*"))
        else:
            yield here, field


LEAVES = {".".join(path): field for path, field in leaves(Project)}


def short(name: str) -> str:
    """A setting's name below its subject."""
    return name.removeprefix("subjects.*.")


def other_value(name: str, old: Any, field: FieldInfo) -> Any:
    """A valid value that differs from the old one."""
    if short(name) in OTHER:
        return OTHER[short(name)]
    kind = plain_type(field.annotation)
    if typing.get_origin(kind) is typing.Literal:
        return next(value for value in typing.get_args(kind) if value != old)
    if old is None:
        old = {int: 63, float: 0.5, str: ""}[kind]
    if isinstance(old, bool):
        return not old
    if isinstance(old, str):
        return "0.5" if kind is not str else f"{old}x"
    if isinstance(old, (list, tuple)):
        element = typing.get_args(kind)[0]
        return [*old, {int: 5, float: 0.7, str: "a"}[element]]
    upper = max((getattr(one, "le", None) or getattr(one, "lt", None) or 0 for one in field.metadata), default=0)
    step = 1 if isinstance(old, int) else 0.001
    return old - step if upper and old + step >= upper else old + step


PAIRS_ALONE = ("captions.instruction", "buckets.diptych")


def change(values: dict[str, Any], name: str, field: FieldInfo) -> None:
    """Change one setting in a dump of the project."""
    *folders, last = name.split(".")
    keys = dict(KEYS)
    if ".pairs." in name or ".image_slider." in name or name.endswith(PAIRS_ALONE):
        keys["subjects"] = "swap"
    if name.endswith("losses_of"):
        keys["subjects"] = "swap"
    if name.endswith("variants.*.lora"):
        keys["variants"] = "old"
    if name.endswith("variants.*.trainer"):
        keys["variants"] = "st"
    if ".surgery.*." in name:
        keys["surgery"] = SURGERY_OF.get(name.partition(".surgery.*.")[2].partition(".")[0], "small")
    place, parent = values, ""
    for folder in folders:
        place = place[keys.get(parent, 0) if folder == "*" else folder]
        parent = folder
    value = other_value(name, place[last], field)
    if re.search(r"\.(background|of|beside)\.(variant|file|best|subject)$", name):
        # A parent is one of four kinds: it becomes another kind.
        place.clear()
    if last == "processes":
        # They share micro-batches, of which there must be enough.
        place["gradient_accumulation"] = 2
    if name.endswith(".crosstalk.*.method"):
        # Only `masked` looks for the place of a word.
        place["word"] = None
    if last == "adapter_precision":
        # Only one optimizer goes with an adapter in bfloat16.
        place["optimizer"]["name"] = "adamw_kahan"
    if last in ("flip", "resolutions_px"):
        # Pairs are of one size.
        place["losses"]["contrastive"] = None
    if name.endswith("targets_from.ablation"):
        # One table is read, and its LoRA must not wait for this training.
        place["table"] = None
        of = values["subjects"]["robin"]["ablation"]["blocks"]["of"]
        of.update({"variant": None, "phase": None, "file": "drawer/one.safetensors"})
    if name.endswith("buckets.diptych"):
        # Only the target's half may be learned, and sources do not stand apart.
        losses = values["subjects"]["swap"]["training"]["losses"]
        losses["velocity"]["region"], losses["image_slider"] = "right_half", None
    if name.endswith(("adapter.kind", "adapter.ranks")):
        # Frozen directions are those of a LoRA of one rank.
        place["orthogonal"] = None
    place[last] = value


@cache
def rules() -> dict[str, tuple[set[str], list[str]]]:
    """Wildcards and used attributes of `plan` of every rule that runs a stage.

    Fetching models is none: only `make models` asks for it.
    """
    found = {}
    for path in sorted((HOUSE / "rules").glob("*.smk")):
        for block in re.split(r"^ *(?=rule \w+:|checkpoint:)", path.read_text(), flags=re.MULTILINE)[1:]:
            name = "decide_phases" if block.startswith("checkpoint") else block[5 : block.index(":")]
            if "shell:" in block and path.stem not in ("miniature", "models"):
                output = block[block.index("output:") : block.index("log:")]
                wildcards = {"subject"} if name == "decide_phases" else set(re.findall(r"\{(\w+)\}", output))
                used = re.findall(r"plan\.((?:(?:project|surgery)\.)?\w+)", block)
                # Resources are no reason to run a job again.
                found[name] = wildcards, [one for one in used if one not in (*FOR_SCHEDULING, "subjects")]
    return found


def jobs_of(plan: Plan) -> dict[tuple[Any, ...], list[str]]:
    """What Snakemake compares of each job, by rule and wildcards."""
    jobs: dict[tuple[Any, ...], list[str]] = {}
    for rule, (wildcards, used) in rules().items():
        for values in instances(plan, rule, wildcards):
            jobs[rule, *values.values()] = [value_of(plan, name, SimpleNamespace(**values)) for name in used]
    return jobs


def instances(plan: Plan, rule: str, wildcards: set[str]) -> Iterator[dict[str, Any]]:
    """The wildcards of all jobs of a rule."""
    if "subject" not in wildcards:
        yield {}
        return
    for subject, settings in plan.subjects.items():
        wrong_kind = {"index_photos": "pairs", "index_pairs": "photos"}.get(rule)
        if settings.kind == wrong_kind:
            continue
        if rule == "score_files":
            choices = [[("variant", name)] for name in plan.external(subject)]
        elif rule in ("encode_samples", "train_lora", "train_external"):
            own = settings.native_variants
            external = rule == "train_external"
            trained = [one for one in plan.trained(subject) if (one[0] not in own) == external]
            choices = [[("variant", variant), ("phase", phase)] for variant, phase in trained]
        elif "variant" in wildcards:
            choices = [[("variant", variant), ("phase", phase)] for variant, phase in plan.trained(subject)]
            if rule == "score_checkpoints":
                choices += [[("variant", name), ("phase", "surgery")] for name in settings.candidates]
        elif "name" in wildcards:
            section = {"make_surgery": "candidates", "ablate_lora": "ablation"}
            section |= {"measure_crosstalk": "crosstalk", "probe_blocks": "probe"}
            choices = [[("name", name)] for name in getattr(settings, section[rule])]
        elif rule == "refine_phase":
            choices = [[("phase", phase)] for phase in settings.refined_phases]
        elif "trainer" in wildcards:
            files = [path.split("/") for path in plan.exported(subject)]
            choices = [[("phase", parts[3]), ("trainer", parts[4])] for parts in files]
        else:
            lists = {"shard": plan.shards, "phase": list(settings.phases), "kind": [settings.kind]}
            free = [[(name, value) for value in lists[name]] for name in sorted(wildcards - {"subject"})]
            choices = [list(one) for one in product(*free)]
        for choice in choices:
            yield {"subject": subject, **dict(choice)}


def value_of(plan: Plan, name: str, wildcards: SimpleNamespace) -> str:
    """The value of `plan.<name>` for one job, as text."""
    if name.startswith("project."):
        return repr(getattr(plan.project, name.removeprefix("project.")))
    value = attrgetter(name)(plan)
    if name in ("kind", "decision_outputs"):
        return repr(value(wildcards.subject))
    if name == "decide_phases":
        return value(wildcards.subject)(wildcards)
    if name == "of_all":
        return repr(value("{subject}"))
    return repr(value(wildcards) if callable(value) else value)


class Decided:
    """Stands for Snakemake's checkpoints: every decision is made."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __getattr__(self, name: str) -> Any:
        subject = next(one for one in self.plan.subjects if name.endswith(one))
        return SimpleNamespace(get=lambda: SimpleNamespace(output=self.plan.decision_outputs(subject)))


def plan_of(project: Project) -> Plan:
    plan = Plan(Loaded(project, ()))
    plan.checkpoints = Decided(plan)
    return plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    for name in (*FILES, *MORE_FILES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "config").mkdir()
    (folder / "config" / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def project(folder: Path) -> Project:
    return load_project(folder).project


@pytest.fixture(scope="module")
def before(project: Project, folder: Path) -> dict[tuple[Any, ...], list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return jobs_of(plan_of(project))


def started_by(name: str, project: Project, before: dict[tuple[Any, ...], list[str]]) -> set[str]:
    """Rules of which a job would start if this setting alone changed."""
    values = project.model_dump(mode="json")
    change(values, name, LEAVES[name])
    subjects = {key: Subject.model_validate(subject) for key, subject in values.pop("subjects").items()}
    changed = Project.model_validate(values).model_copy(update={"subjects": subjects})
    after = jobs_of(plan_of(changed))
    assert changed != project, "the setting was not changed"
    return {job[0] for job in {*before, *after} if before.get(job) != after.get(job)}


def expected(name: str) -> set[str]:
    """The stages that read a setting, by the longest prefix of its path; with the pages, which show what a subject has."""
    parts = short(name).split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    of_subject = PAGES if name.startswith("subjects.") else set()
    if name in REACHES_NOTHING:
        return of_subject
    return READ_BY[next(prefix for prefix in prefixes if prefix in READ_BY)] | of_subject


@pytest.mark.parametrize("name", LEAVES)
def test_a_setting_starts_the_stages_that_read_it(
    name: str, project: Project, before: dict, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert started_by(name, project, before) == expected(name)


def test_every_setting_reaches_a_stage_or_has_its_reason() -> None:
    for name in LEAVES:
        assert bool(expected(name) - PAGES) != (name in REACHES_NOTHING), name


def test_every_rule_with_a_program_is_compared() -> None:
    programs = {
        name
        for path in (HOUSE / "rules").glob("*.smk")
        if path.stem not in ("miniature", "models")
        for name in re.findall(r"LIKENESS/(\w+)\.py", path.read_text())
    }
    assert programs <= set(rules())


def test_swapped_numbers_start_what_reads_them(project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake compares params as a set of values without names; one string of all of them is safe."""
    monkeypatch.chdir(folder)

    def with_rank(rank: int, alpha: float) -> dict[tuple[Any, ...], list[str]]:
        subject = project.subjects["robin"]
        training = subject.training.model_copy(update={"rank": rank, "alpha": alpha})
        subjects = project.subjects | {"robin": subject.model_copy(update={"training": training})}
        return jobs_of(plan_of(project.model_copy(update={"subjects": subjects})))

    before, after = with_rank(16, 32.0), with_rank(32, 16.0)
    started = {job[0] for job in before if set(before[job]) != set(after[job])}
    assert started == {*TRAINING, *PAGES}


@pytest.mark.parametrize(
    ("change_of_phase", "expected"),
    [
        ({"where": "train_loss_percentile < 80"}, {"refine_phase"}),
        ({"where": "true", "order_by": "train_loss_percentile"}, {"refine_phase"}),
        ({"top": 5}, {"refine_phase"}),
        ({"where": "sharpness > 3 AND train_loss_percentile < 90"}, {"decide_phases"}),
        ({"order_by": "sharpness"}, {"decide_phases"}),
        ({"nested": True}, {"decide_phases", "refine_phase"}),
    ],
)
def test_what_is_asked_of_losses_reaches_the_refining_alone(
    change_of_phase: dict[str, Any], expected: set[str], project: Project, before: dict, folder: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(folder)
    values = project.subjects["swap"].model_dump(mode="json")
    values["phases"]["fine"] |= change_of_phase
    subjects = project.subjects | {"swap": Subject.model_validate(values)}
    after = jobs_of(plan_of(project.model_copy(update={"subjects": subjects})))
    assert {job[0] for job in before if before[job] != after[job]} == expected | PAGES


class Undecided(Exception):
    """What Snakemake raises until the decision was made."""


def test_readers_of_every_manifest_ask_for_the_decision(project: Project) -> None:
    """A manifest that losses settle is no output of the decision, and the cut-off is not inherited."""

    class Waiting:
        def __getattr__(self, name: str) -> Any:
            raise Undecided(name)

    plan = Plan(Loaded(project, ()))
    plan.checkpoints = Waiting()
    for phase in project.subjects["swap"].phases:
        for ask in (plan.manifest, plan.manifests, plan.holdout):
            with pytest.raises(Undecided, match="decide_phases_swap"):
                ask(SimpleNamespace(subject="swap", phase=phase))
    with pytest.raises(Undecided):
        plan.candidates(SimpleNamespace(subject="swap", phase="fine"))
    with pytest.raises(Undecided, match="decide_phases_robin"):
        plan.faces_to_learn(SimpleNamespace(subject="robin", variant="main", phase="main"))


OF_ALL_PHOTOS = re.compile(
    r"results/[^/]+/(?:shards/.+|photos|pairs|faces|masks|quality|captions|phases/decisions)\.parquet"
)
"""Tables that any edit of any photo writes again."""


def test_nothing_behind_the_decision_takes_a_table_of_all_photos(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such an input would start the job, and all that follow, by an edit of a photo that no phase trains on."""
    monkeypatch.chdir(folder)
    plan, seen = plan_of(project), set()
    for name in ("training", "evaluation", "exports", "publish", "surgery", "phases"):
        text = (HOUSE / "rules" / f"{name}.smk").read_text()
        for block in re.split(r"^rule ", text, flags=re.MULTILINE)[1:]:
            rule, given = block[: block.index(":")], block[block.index("input:") : block.index("output:")]
            wildcards, _ = rules()[rule]
            literal = set(re.findall(r'"(results/.+?)"', given))
            for values in instances(plan, rule, wildcards):
                one = SimpleNamespace(**values)
                asked = [value_of(plan, used, one) for used in re.findall(r"plan\.((?:surgery\.)?\w+)", given)]
                found = OF_ALL_PHOTOS.findall(" ".join([*asked, *literal]))
                assert not found, f"{rule} of {values} reads {found}"
                seen.add(rule)
    assert {"encode_samples", "train_lora", "score_checkpoints", "publish_lora", "refine_phase", "ablate_lora"} <= seen


def test_curation_asks_for_nothing_that_a_training_settles(project: Project) -> None:
    values = project.subjects["swap"].model_dump(mode="json") | {"export": {"simpletuner": {}}}
    subjects = project.subjects | {"swap": Subject.model_validate(values)}
    plan = plan_of(project.model_copy(update={"subjects": subjects}))
    exports = [f"results/swap/exports/{phase}/simpletuner/files.json" for phase in ("main", "fine")]
    assert plan.exported("swap") == exports and set(exports) <= set(plan.products("swap"))
    assert plan.exported_untrained("swap") == exports[:1]


def test_a_phase_that_losses_settle_has_one_maker(project: Project) -> None:
    plan = plan_of(project)
    decided = set(plan.decision_outputs("swap").values())
    assert "results/swap/phases/candidates/fine.parquet" in decided
    for name, settled in (("main", False), ("fine", True), ("holdout", False), ("fine-2", False)):
        file = f"results/swap/phases/{name}.parquet"
        pattern = rf"results/(?P<subject>[a-z0-9-]+)/phases/(?P<phase>{plan.refined_phase})\.parquet"
        assert bool(re.fullmatch(pattern, file)) == settled
        assert not (settled and file in decided)
        assert not re.fullmatch(pattern, file.replace("swap", "robin"))


def test_weights_of_the_recogniser_that_are_put_in_place_start_the_scoring(
    project: Project, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    pack = tmp_path / "antelopev2"

    def jobs() -> dict[tuple[Any, ...], list[str]]:
        subject = project.subjects["robin"]
        recogniser = subject.evaluation.recogniser.model_copy(update={"source": str(pack)})
        evaluation = subject.evaluation.model_copy(update={"recogniser": recogniser})
        subjects = project.subjects | {"robin": subject.model_copy(update={"evaluation": evaluation})}
        return jobs_of(plan_of(project.model_copy(update={"subjects": subjects})))

    before = jobs()
    pack.mkdir()
    assert jobs() == before
    for name in NEEDED_FILES["antelopev2"]:
        (pack / name).write_bytes(b"weights")
    after = jobs()
    assert {job[0] for job in before if before[job] != after[job]} == SCORES
    assert {job[1] for job in before if before[job] != after[job]} == {"robin"}
