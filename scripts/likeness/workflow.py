"""What the rules need while Snakemake parses them: settings slices, targets, what lies behind the checkpoint.

Nothing heavy is imported here, since every Snakemake start and every cluster job pays for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from likeness.code import SCRIPTS
from likeness.config.captions import CaptionStage
from likeness.config.evaluation import ChoiceStage, PublishStage, ScoreStage
from likeness.config.faces import FaceMerge, FaceStage
from likeness.config.load import Loaded, load_project
from likeness.config.masks import MaskStage
from likeness.config.photos import PhotoStage
from likeness.config.quality import QualityStage
from likeness.config.regularisation import ClassImagesStage, RegularisationStage
from likeness.config.report import PageStage
from likeness.config.subject import MINIATURE, Subject
from likeness.config.training import EncodeStage, TrainingSettings, TrainStage
from likeness.evaluation.judge import expect, remember
from likeness.models import FetchStage, mask_model, wanted_models
from likeness.store import canonical_json
from likeness.trainers import export_slice, external_slice, variant_pattern
from likeness.workflow_phases import PhasePlan, Unread
from likeness.workflow_restore import times_restored
from likeness.workflow_surgery import SurgeryPlan

MODELS = "models/miniature"
ONLY_OF_MERGE: Unread = {"photo": {"near_duplicate_bits"}}
ONLY_OF_FINALISTS: Unread = {"evaluation": {"strengths", "finalists", "distilled_model"}}


def evaluation_of(subject: str) -> Path:
    """Where a subject's scores lie."""
    return Path("results", subject, "evaluation")


def use_this_interpreter() -> None:
    """Let the rules' `python` be the interpreter that runs Snakemake, and tell them where the programs lie."""
    folder = str(Path(sys.executable).parent)
    paths = os.environ.get("PATH", "").split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([folder, *[path for path in paths if path != folder]])
    os.environ["LIKENESS"] = str(SCRIPTS)


class Plan(PhasePlan):
    """The configured project as the rules see it; its methods serve as their input and params functions."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded.project)
        self.surgery = SurgeryPlan(self)
        self.warnings = (*loaded.warnings, *self._loras_left_out(), *self._masks_of_nobody())

    @classmethod
    def load(cls, configfiles: Sequence[Path], overrides: dict[str, Any]) -> Plan:
        """Load the configuration of the working directory."""
        return cls(load_project(Path.cwd(), configfiles, overrides))

    @property
    def variant_of(self) -> dict[str, str]:
        """Patterns of variants that are trained here (`native`) and by another trainer (`external`)."""
        return variant_pattern(self.subjects)

    # ---- models of the miniature -----------------------------------------------------------------------------------

    def miniature_base(self, wildcards: Any) -> list[str]:
        """The manifest of the drawn world's base model, where this subject uses it."""
        return [f"{MODELS}/base.json"] if self.subjects[wildcards.subject].base_model.source == MINIATURE else []

    def miniature_pack(self, wildcards: Any) -> list[str]:
        """The manifest of the drawn world's face pack, where this subject's faces use it."""
        return [f"{MODELS}/pack.json"] if self.subjects[wildcards.subject].faces.model.source == MINIATURE else []

    def miniature_masks(self, wildcards: Any) -> list[str]:
        """The manifest of the drawn world's mask model, where this subject's masks use it."""
        model = self.subjects[wildcards.subject].masks.model
        return [f"{MODELS}/sam2.json"] if model and model.source == MINIATURE else []

    def miniature_judge(self, wildcards: Any) -> list[str]:
        """The drawn world's base model and evaluation recogniser, where this subject uses them."""
        judge = self.subjects[wildcards.subject].evaluation.recogniser.source
        return self.miniature_base(wildcards) + ([f"{MODELS}/pack.json"] if judge == MINIATURE else [])

    def fetch_models(self, wildcards: Any) -> str:
        """The models that the configured backends load, each once."""
        found = [one for name, subject in self.subjects.items() for one in wanted_models(name, subject)]
        return self.params(FetchStage(wanted=tuple(found)), "fetch_models")

    def gpus_of_masks(self, wildcards: Any) -> int:
        """GPUs of a mask job: none where no model makes the masks."""
        return self.project.gpus_per_job if mask_model(self.subjects[wildcards.subject]) else 0

    def gpus_of_captions(self, wildcards: Any) -> int:
        """GPUs of a caption job: none where the captions come from an endpoint, a file or measured facts."""
        return self.project.gpus_per_job if self.subjects[wildcards.subject].captions.backend == "transformers" else 0

    def gpus_of_training(self, wildcards: Any) -> int:
        """GPUs of a training job: one for each of its processes."""
        training = self.subjects[wildcards.subject].training_of(wildcards.variant, wildcards.phase)
        return self.project.gpus_per_job * training.processes

    # ---- params: one canonical JSON string a rule ------------------------------------------------------------------

    def resolved(self, settings: Any, **sources: str) -> Any:
        """Replace the word `miniature` by the folder of the model it stands for."""
        changes = {}
        for key, folder in sources.items():
            model = getattr(settings, key)
            if model is not None and model.source == MINIATURE:
                changes[key] = model.model_copy(update={"source": f"{MODELS}/{folder}"})
        return settings.model_copy(update=changes)

    def _index_slice(self, subject: Subject) -> PhotoStage:
        folders = subject.photos if subject.kind == "photos" else subject.pairs
        return PhotoStage(kind=subject.kind, folders=folders, photo=subject.photo)

    def _index(self, script: str, wildcards: Any) -> str:
        files = self.photos[wildcards.subject][int(wildcards.shard)]
        stage = self._index_slice(self.subjects[wildcards.subject])
        return self.params(stage, script, unread=ONLY_OF_MERGE, files=files.others)

    def index_photos(self, wildcards: Any) -> str:
        return self._index("index_photos", wildcards)

    def index_pairs(self, wildcards: Any) -> str:
        return self._index("index_pairs", wildcards)

    def merge_photos(self, wildcards: Any) -> str:
        return self.params(self._index_slice(self.subjects[wildcards.subject]), "merge_photos")

    def detect_faces(self, wildcards: Any) -> str:
        faces = self.resolved(self.subjects[wildcards.subject].faces, model="pack/pack")
        stage = FaceStage(faces=faces, offline=self.project.offline, cpu_threads=self.project.cpu_threads)
        return self.params(stage, "detect_faces", "faces", unread={"faces": {"min_identity"}})

    def merge_faces(self, wildcards: Any) -> str:
        subject = self.subjects[wildcards.subject]
        faces = self.resolved(subject.faces, model="pack/pack")
        stage = FaceMerge(
            faces=faces, kind=subject.kind, references=tuple(subject.reference), offline=self.project.offline
        )
        return self.params(stage, "merge_faces", "faces", files=self.reference_files(wildcards.subject).others)

    def _mask_slice(self, subject: Subject) -> MaskStage:
        masks = self.resolved(subject.masks, model="sam2/sam2")
        return MaskStage(masks=masks, offline=self.project.offline, cpu_threads=self.project.cpu_threads)

    def make_masks(self, wildcards: Any) -> str:
        return self.params(self._mask_slice(self.subjects[wildcards.subject]), "make_masks", "masks")

    def merge_masks(self, wildcards: Any) -> str:
        return self.params(self._mask_slice(self.subjects[wildcards.subject]), "merge_masks")

    def _quality_slice(self, subject: Subject) -> QualityStage:
        return QualityStage(quality=subject.quality, kind=subject.kind, offline=self.project.offline)

    def measure_quality(self, wildcards: Any) -> str:
        clusters = {"light_distance", "background_distance"}
        stage = self._quality_slice(self.subjects[wildcards.subject])
        return self.params(stage, "measure_quality", unread={"quality": clusters})

    def merge_quality(self, wildcards: Any) -> str:
        return self.params(self._quality_slice(self.subjects[wildcards.subject]), "merge_quality")

    def _caption_slice(self, name: str, by_hand: dict[str, dict[str, str]]) -> CaptionStage:
        """The captions slice with what hands wrote: a shard's own, nothing for the merge, which asks nobody."""
        subject = self.subjects[name]
        return CaptionStage(
            captions=subject.captions,
            recipe=subject.recipe,
            trigger=subject.trigger,
            class_word=subject.class_word,
            **by_hand,
            offline=self.project.offline,
            cpu_threads=self.project.cpu_threads,
        )

    def write_captions(self, wildcards: Any) -> str:
        name, shard = wildcards.subject, int(wildcards.shard)
        texts = {"sidecars": self.sidecars[name], "edits": self.edits[name]}
        by_hand = {kind: self._of_shard(found, shard) for kind, found in texts.items()}
        stage = self._caption_slice(name, by_hand)
        beside = {"files": self.sidecar_files(name, shard).others, "unread_edits": self.unread_edits[name]}
        return self.params(stage, "write_captions", "captions", **beside)

    def merge_captions(self, wildcards: Any) -> str:
        times = times_restored("merge_captions", wildcards.subject)
        return self.params(self._caption_slice(wildcards.subject, {}), "merge_captions", restored=times)

    def export_dataset(self, wildcards: Any) -> str:
        stage = export_slice(self.subjects[wildcards.subject], wildcards.trainer, wildcards.phase)
        return self.params(stage, "export_dataset", "exports")

    def train_external(self, wildcards: Any) -> str:
        stage = external_slice(
            self.subjects[wildcards.subject], wildcards.variant, wildcards.phase, self.project.offline
        )
        return self.params(self.resolved(stage, base_model="base"), "train_external", "exports")

    def encoded(self, wildcards: Any) -> str:
        """The table that a training reads its encoded samples from."""
        maker = self._encoded_by[wildcards.subject, wildcards.variant, wildcards.phase]
        return f"results/{wildcards.subject}/encoded/{maker}/{wildcards.phase}.parquet"

    @cached_property
    def _encoded_by(self) -> dict[tuple[str, str, str], str]:
        """The variant by whose settings each training's samples are encoded: the first of which encoding reads the same."""
        makers: dict[tuple[str, str, str], str] = {}
        for name, subject in self.subjects.items():
            first: dict[tuple[str, str], str] = {}
            for variant in subject.native_variants:
                for phase in subject.phases_of(variant):
                    own = subject.training_of(variant, phase)
                    flags = [own.losses.reads_faces, bool(own.held_out_sigmas), subject.regularised(phase, variant)]
                    read = canonical_json([self._encode_slice(name, variant, phase).model_dump(mode="json"), flags])
                    makers[name, variant, phase] = first.setdefault((phase, read), variant)
        return makers

    def _encode_slice(self, name: str, variant: str, phase: str) -> EncodeStage:
        """What encoding reads of a variant's settings in one phase."""
        subject = self.subjects[name]
        own = subject.training_of(variant, phase)
        with_class = own.losses.output_preservation is not None
        return EncodeStage(
            base_model=subject.base_model,
            buckets=own.all_buckets,
            mirrored=own.flip > 0,
            mask_kind=subject.training.masked_loss.kind,
            unmasked_weights=() if own.masked_loss.inverted else (own.masked_loss.unmasked_weight,),
            class_captions=with_class,
            sources=own.losses.image_slider is not None,
            trigger=subject.trigger if with_class else "",
            class_word=subject.class_word if with_class else "",
            prompts=tuple(dict.fromkeys(own.prompts)),
            regularisation_caption=subject.class_caption(phase, variant),
            offline=self.project.offline,
            cpu_threads=self.project.cpu_threads,
        )

    def encode_samples(self, wildcards: Any) -> str:
        stage = self._encode_slice(wildcards.subject, wildcards.variant, wildcards.phase)
        return self.params(self.resolved(stage, base_model="base"), "encode_samples")

    def faces_to_learn(self, wildcards: Any) -> list[str]:
        """The faces in all that is encoded, where a loss reads faces."""
        training = self.subjects[wildcards.subject].training_of(wildcards.variant, wildcards.phase)
        if not training.losses.reads_faces:
            return []
        samples = [wildcards.phase, *(["holdout"] if self.holdout_to_encode(wildcards) else [])]
        return [self.sample_faces(wildcards, name) for name in samples]

    def faces_flag(self, wildcards: Any) -> str:
        return " ".join(f"--faces {path}" for path in self.faces_to_learn(wildcards))

    def holdout_to_encode(self, wildcards: Any) -> list[str]:
        """The held-out samples, where the training measures its loss on them; they then start encoding and training jobs."""
        training = self.subjects[wildcards.subject].training_of(wildcards.variant, wildcards.phase)
        return [self.holdout(wildcards)] if training.held_out_sigmas else []

    def holdout_flag(self, wildcards: Any) -> str:
        return " ".join(f"--holdout {path}" for path in self.holdout_to_encode(wildcards))

    def _training(self, subject: Subject, wildcards: Any) -> TrainingSettings:
        """Training settings of a variant and phase, with the drawn world's recogniser for the identity loss in its place."""
        training = subject.training_of(wildcards.variant, wildcards.phase)
        identity = training.losses.identity
        if identity is None or identity.model.source != MINIATURE:
            return training
        identity = self.resolved(identity, model="pack/pack/recogniser.onnx")
        losses = training.losses.model_copy(update={"identity": identity})
        return training.model_copy(update={"losses": losses})

    def miniature_training(self, wildcards: Any) -> list[str]:
        """The drawn world's base model and recogniser, where this training uses them."""
        training = self.subjects[wildcards.subject].training_of(wildcards.variant, wildcards.phase)
        identity = training.losses.identity
        with_pack = identity is not None and identity.model.source == MINIATURE
        return self.miniature_base(wildcards) + ([f"{MODELS}/pack.json"] if with_pack else [])

    def index_regularisation(self, wildcards: Any) -> str:
        subject = self.subjects[wildcards.subject]
        stage = RegularisationStage(folders=subject.regularisation.photos, photo=subject.photo)
        files = self.class_photos[wildcards.subject]
        return self.params(stage, "index_regularisation", unread=ONLY_OF_MERGE, files=files.others)

    def draw_class_images(self, wildcards: Any) -> str:
        subject = self.subjects[wildcards.subject]
        own = subject.regularisation
        stage = ClassImagesStage(
            base_model=subject.base_model,
            caption=own.caption_of(subject.class_word),
            drawn=own.drawn,
            size_px=own.size_px,
            sampling_steps=own.sampling_steps,
            guidance_scale=own.guidance_scale,
            seed=own.seed,
            batch_size=own.batch_size,
            precision=subject.evaluation.precision,
            offline=self.project.offline,
            cpu_threads=self.project.cpu_threads,
        )
        return self.params(self.resolved(stage, base_model="base"), "draw_class_images")

    def train_lora(self, wildcards: Any) -> str:
        subject = self.subjects[wildcards.subject]
        phase = subject.phases[wildcards.phase]
        stage = TrainStage(
            training=self._training(subject, wildcards),
            base_model=subject.base_model,
            init=phase.init,
            offline=self.project.offline,
        )
        files = self.folders.sorted_out(self._own_files(wildcards))
        return self.params(self.resolved(stage, base_model="base"), "train_lora", files=files.others)

    @cached_property
    def has_recogniser(self) -> dict[str, bool]:
        """What each subject's scoring is told of its recogniser; asked once, so that it holds for the whole run."""
        return {
            name: subject.evaluation.recogniser.source == MINIATURE or expect(subject.evaluation, evaluation_of(name))
            for name, subject in self.subjects.items()
        }

    def remember_recognisers(self) -> None:
        """Keep what scoring was told, for the runs that follow."""
        for name, expected in self.has_recogniser.items():
            remember(expected, self.subjects[name].evaluation, evaluation_of(name))

    def score_slice(self, name: str) -> ScoreStage:
        subject = self.subjects[name]
        stage = ScoreStage(
            evaluation=self.resolved(subject.evaluation, recogniser="pack/evaluation_pack"),
            prompts=subject.prompts,
            recipe=subject.recipe,
            kind=subject.kind,
            trigger=subject.trigger,
            class_word=subject.class_word,
            base_model=subject.base_model,
            buckets=subject.training.buckets,
            offline=self.project.offline,
            has_recogniser=self.has_recogniser[name],
        )
        return self.resolved(stage, base_model="base")

    def _score(self, script: str, wildcards: Any, unread: Unread) -> str:
        stage = self.score_slice(wildcards.subject)
        return self.params(stage, script, "evaluation/metrics", "faces", unread=unread)

    def score_base(self, wildcards: Any) -> str:
        return self._score("score_base", wildcards, ONLY_OF_FINALISTS)

    def score_checkpoints(self, wildcards: Any) -> str:
        return self._score("score_checkpoints", wildcards, ONLY_OF_FINALISTS)

    def score_finalists(self, wildcards: Any) -> str:
        return self._score("score_finalists", wildcards, {"evaluation": {"finalists"}})

    def choice_slice(self, name: str, with_pick: bool) -> ChoiceStage:
        subject = self.subjects[name]
        pick = subject.pick if with_pick else None
        return ChoiceStage(
            choice=subject.choice, finalists=subject.evaluation.finalists, recipe=subject.recipe, pick=pick
        )

    def finalists(self, wildcards: Any) -> str:
        """How finalists are found; a hand's pick does not enter, so that it draws nothing."""
        return canonical_json(
            {"settings": self.choice_slice(wildcards.subject, False).model_dump(mode="json"), "code": ""}
        )

    def choose_checkpoint(self, wildcards: Any) -> str:
        return self.params(self.choice_slice(wildcards.subject, True), "choose_checkpoint")

    def publish_lora(self, wildcards: Any) -> str:
        subject = self.subjects[wildcards.subject]
        stage = PublishStage(
            recipe=subject.recipe,
            trigger=subject.trigger,
            class_word=subject.class_word,
            base_model=subject.base_model,
            training=subject.training.model_dump(mode="json"),
            offline=self.project.offline,
        )
        times = times_restored("publish_lora", wildcards.subject)
        return self.params(self.resolved(stage, base_model="base"), "publish_lora", restored=times)

    # ---- behind the checkpoint -------------------------------------------------------------------------------------

    def previous_steps(self, wildcards: Any) -> list[str]:
        """steps.json of the phase before, where this one starts from its weights."""
        subject = self.subjects[wildcards.subject]
        phases = subject.phases_of(wildcards.variant)
        place = phases.index(wildcards.phase)
        if place == 0 or not subject.phases[wildcards.phase].follows:
            return []
        return [f"results/{wildcards.subject}/train/{wildcards.variant}/{phases[place - 1]}/steps.json"]

    def trained(self, subject: str) -> list[tuple[str, str]]:
        """Every (variant, phase) that is trained."""
        settings = self.subjects[subject]
        return [(variant, phase) for variant in settings.trained_variants for phase in settings.phases_of(variant)]

    def step_files(self, wildcards: Any) -> list[str]:
        """Where all LoRAs are listed that were trained or made by surgery."""
        return [*self.surgery.trained_steps(wildcards), *self.surgery.records(wildcards.subject)]

    def select_scores(self, wildcards: Any) -> list[str]:
        """Score tables of all candidates, without the base."""
        return self.surgery.checkpoint_scores(wildcards) + self.surgery.scores(wildcards.subject)

    def all_scores(self, wildcards: Any) -> list[str]:
        folder = f"results/{wildcards.subject}/evaluation"
        return [f"{folder}/base/scores.parquet", *self.select_scores(wildcards), f"{folder}/report-half/scores.parquet"]

    def previous_flag(self, wildcards: Any) -> str:
        return " ".join(f"--previous {path}" for path in self.previous_steps(wildcards))

    # ---- pages and the miniature ------------------------------------------------------------------------------------

    def write_config(self, wildcards: Any) -> str:
        name = wildcards.subject
        return self.params(self._page_slice(name), "write_config")

    def _page_slice(self, *names: str) -> PageStage:
        slices = {name: self.subjects[name].model_dump(mode="json") for name in names}
        return PageStage(subjects=slices, orders={name: tuple(self.subjects[name].phases) for name in names})

    def _pages(self, script: str) -> str:
        return self.params(self._page_slice(*self.subjects), script, "report")

    def write_curation(self, wildcards: Any) -> str:
        return self._pages("write_curation")

    def write_report(self, wildcards: Any) -> str:
        return self._pages("write_report")

    def build_miniature_base(self, wildcards: Any) -> str:
        return self.params({"seed": 0}, "build_miniature_base")

    def build_miniature_pack(self, wildcards: Any) -> str:
        return self.params({"seed": 0}, "build_miniature_pack")

    # ---- targets ---------------------------------------------------------------------------------------------------

    def products(self, subject: str) -> list[str]:
        """What building one subject means."""
        made = [f"results/{subject}/lora/published.json", f"results/{subject}/config.yaml"]
        return [*made, *self.surgery.measured(subject), *self.exported(subject)]

    def curated_tables(self, wildcards: Any) -> list[str]:
        """What the page of every photo shows of all subjects, beside the decisions."""
        stages = ("faces", "masks", "quality", "captions")
        return [
            f"results/{subject}/{table}.parquet" for subject in self.subjects for table in (self.kind(subject), *stages)
        ]

    def of_all(self, path: str) -> list[str]:
        """A path pattern filled for every subject."""
        return [path.format(subject=subject) for subject in self.subjects]
