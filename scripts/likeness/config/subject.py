"""One subject: everything that makes one LoRA, after all layers are merged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from likeness.config.base import NAME_PATTERN, RESERVED_NAMES, ModelChoice, Settings, one_or_many
from likeness.config.captions import CaptionSettings
from likeness.config.evaluation import ChoiceSettings, EvaluationSettings, Pick, Prompt
from likeness.config.exports import ExportSettings, TrainerCommand
from likeness.config.faces import FaceSettings
from likeness.config.masks import MaskSettings
from likeness.config.messages import explain
from likeness.config.metrics import ONLY_OF_RECIPES
from likeness.config.phases import PhaseSettings
from likeness.config.photos import PairFolders, PhotoFolders, PhotoSettings
from likeness.config.quality import QualityLimits, QualitySettings
from likeness.config.regularisation import RegularisationSettings
from likeness.config.source import KeyPath
from likeness.config.surgery import SURGERY, Ablation, Crosstalk, Probe, Surgery, surgery_mistakes
from likeness.config.train_losses import loss_mistakes, losses_that_wait
from likeness.config.training import TrainingSettings, Variant
from likeness.errors import nearest

MINIATURE = "miniature"
FILES = "files"
"""The phase of finished files."""
TRAINERS = (
    "simpletuner",
    "ai-toolkit",
    "diffusion-pipe",
    "musubi-tuner",
    "diffsynth-studio",
    "onetrainer",
    "diffusers",
    "fal",
)
HOSTED = ("fal",)
"""Trainers that run elsewhere: data goes there by hand."""


def check_name(name: str) -> str:
    """Refuse names that a path or a table could not hold."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f"{name!r} is not a name: use small letters, digits and hyphens")
    if name in RESERVED_NAMES:
        raise ValueError(f"{name!r} is reserved; choose another name")
    return name


Name = Annotated[str, AfterValidator(check_name)]


def exports_from_list(value: Any) -> Any:
    """Let a list of trainer names stand for exports with default settings."""
    return {name: {} for name in value} if isinstance(value, list) else value


class Subject(Settings):
    """All settings of one subject."""

    recipe: Literal["character", "style", "edit"] = Field(
        default="character", description="What is learned: a person, a style, or an edit from pairs."
    )
    preset: Annotated[list[str], BeforeValidator(one_or_many, json_schema_input_type=list[str] | str)] = Field(
        default_factory=list, description="Named settings from config/presets, laid over the recipe in order."
    )
    trigger: str = Field(min_length=1, description="The word that calls the LoRA; one that no language uses.")
    class_word: str = Field(
        default="person", min_length=1, description="What the subject is, for prompts without the trigger."
    )
    photos: PhotoFolders = Field(default_factory=list, description="Character, style: folders of photos.")
    pairs: PairFolders = Field(default_factory=list, description="Edit: folders of before/after pairs.")
    reference: Annotated[list[str], BeforeValidator(one_or_many, json_schema_input_type=list[str] | str)] = Field(
        default_factory=list, description="Photos that show who the subject is; never trained on."
    )
    base_model: ModelChoice = Field(
        default={"source": "black-forest-labs/FLUX.2-klein-base-4B"},
        description="FLUX.2 klein base: hub id, folder, or `miniature`.",
    )  # type: ignore[arg-type]
    held_out: int = Field(
        default=2, ge=0, description="Samples kept from training to measure against; 0: leave one out."
    )
    always: tuple[str, ...] = Field(default=(), description="Photos or pairs kept by hand in every phase, by name.")
    never: tuple[str, ...] = Field(default=(), description="Photos or pairs dropped by hand from every phase, by name.")
    photo: PhotoSettings = PhotoSettings()
    faces: FaceSettings = FaceSettings()
    masks: MaskSettings = MaskSettings()
    quality: QualitySettings = QualitySettings()
    limits: QualityLimits = QualityLimits()
    captions: CaptionSettings = CaptionSettings()
    regularisation: RegularisationSettings = RegularisationSettings()
    phases: dict[Name, PhaseSettings] = Field(
        default_factory=lambda: {"main": PhaseSettings()},
        min_length=1,
        description="Phases in the order in which they are trained.",
    )
    export: Annotated[
        dict[str, ExportSettings],
        BeforeValidator(exports_from_list, json_schema_input_type=dict[str, ExportSettings] | list[str]),
    ] = Field(default_factory=dict, description=f"Other trainers to render the dataset for: {', '.join(TRAINERS)}.")
    trainers: dict[str, TrainerCommand] = Field(
        default_factory=dict,
        description="Commands of other trainers on this machine, by trainer; best kept in `defaults` of config.yaml.",
    )
    training: TrainingSettings = TrainingSettings()
    variants: dict[Name, Variant] = Field(
        default_factory=lambda: {"main": Variant()},
        min_length=1,
        description="LoRAs that compete: trained with changes, or finished files.",
    )
    surgery: dict[Name, Surgery] = Field(
        default_factory=dict, description="Further candidates, made of finished LoRAs; they compete in the same table."
    )
    ablation: dict[Name, Ablation] = Field(
        default_factory=dict, description="LoRAs to take apart block by block, to see which blocks do the work."
    )
    crosstalk: dict[Name, Crosstalk] = Field(
        default_factory=dict, description="Pairs of LoRAs to measure together: what each loses when both are on."
    )
    probe: dict[Name, Probe] = Field(
        default_factory=dict, description="Prompts to swap block by block, to see which blocks take content and style."
    )
    prompts: dict[Name, Prompt] = Field(
        default_factory=dict, description="Evaluation prompts by name; the recipe ships twelve."
    )
    evaluation: EvaluationSettings = EvaluationSettings()
    choice: ChoiceSettings = ChoiceSettings()
    pick: Pick | None = Field(default=None, description="A choice made by hand: {variant, phase, step}.")

    @property
    def kind(self) -> Literal["photos", "pairs"]:
        """Whether samples are photos or pairs."""
        return "pairs" if self.recipe == "edit" else "photos"

    @property
    def trained_variants(self) -> dict[str, Variant]:
        """Variants that a training makes, here or by another trainer."""
        return {name: variant for name, variant in self.variants.items() if not variant.lora}

    @property
    def candidates(self) -> dict[str, Surgery]:
        """Every LoRA that surgery makes, by name; an entry with several values of alpha makes several."""
        return {name: own for entry in self.surgery for name, own in self.surgery[entry].candidates(entry)}

    @property
    def native_variants(self) -> dict[str, Variant]:
        """Variants that are trained here."""
        return {name: variant for name, variant in self.trained_variants.items() if not variant.trainer}

    def phases_of(self, variant: str) -> list[str]:
        """Names of the phases that a trained variant runs, in order."""
        chosen = self.variants[variant].phases
        return [name for name in self.phases if not chosen or name in chosen]

    @property
    def refined_phases(self) -> list[str]:
        """Phases whose samples are settled after a training: those that read its losses, and those nested behind one."""
        refined: list[str] = []
        before: str | None = None
        for name, phase in self.phases.items():
            if phase.losses_of is not None or (phase.nested and before is not None and before in refined):
                refined.append(name)
            before = name
        return refined

    def training_of(self, variant: str, phase: str) -> TrainingSettings:
        """Training settings of one variant and phase, after the variant's and the phase's own values."""
        values = merge_settings(self.training.model_dump(mode="json"), self.variants[variant].training)
        own = self.phases[phase]
        values = merge_settings(values, own.training)
        values |= {"steps": own.steps} if own.steps else {}
        values |= {"learning_rate": own.learning_rate} if own.learning_rate else {}
        return TrainingSettings.model_validate(values)

    def origin_of(self, variant: str, phase: str, key: KeyPath) -> KeyPath:
        """Where a key of the training of a variant and phase is set: by the phase, the variant, or for all."""
        layers: list[tuple[KeyPath, Mapping[str, Any]]] = [
            (("phases", phase, "training"), self.phases[phase].training),
            (("variants", variant, "training"), self.variants[variant].training),
            (("training",), self.training.model_dump()),
        ]
        held = (
            (length, place)
            for length in range(len(key), 0, -1)
            for place, values in layers
            if holds(values, key[:length])
        )
        return (*next(held, (0, ("training",)))[1], *key)

    @model_validator(mode="after")
    def check_whole(self) -> Subject:
        """Check what two keys must agree on; each message names the keys."""
        wrong: list[str] = []
        wanted, other = ("pairs", "photos") if self.kind == "pairs" else ("photos", "pairs")
        if not getattr(self, wanted):
            wrong.append(f"{wanted}: missing; recipe {self.recipe!r} needs at least one folder of {wanted}")
        if getattr(self, other):
            wrong.append(
                f"{other}: recipe {self.recipe!r} reads `{wanted}:`, so this key would be unused; remove it or change the recipe"
            )
        broken = [*self._wrong_phases(), *self._wrong_trainings()]
        wrong += broken
        for trainer in self.export:
            if trainer not in TRAINERS:
                wrong.append(f"export.{trainer}: unknown trainer; {nearest(trainer, TRAINERS)}")
        wrong += self._wrong_trainers()
        wrong += [] if broken else [*self._wrong_regularisation(), *self._wrong_masks(), *self._wrong_sources()]
        if self.masks and self.training.masked_loss.kind and self.training.masked_loss.kind not in self.masks.kinds:
            wrong.append(
                f"training.masked_loss.kind: {self.training.masked_loss.kind!r} is not among masks.kinds {list(self.masks.kinds)}"
            )
        losses = list(loss_mistakes(self))
        wrong += losses
        wrong += [] if broken else surgery_mistakes(self)
        wrong += [] if broken or losses else losses_that_wait(self)
        recipes = ONLY_OF_RECIPES.get(self.choice.metric or "", (self.recipe,))
        if self.recipe not in recipes:
            wrong.append(
                f"choice.metric: {self.choice.metric} is null for recipe {self.recipe!r}; it is for {' and '.join(recipes)}"
            )
        wrong += self._wrong_pick()
        wrong += [] if broken else self._wrong_step()
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def _wrong_phases(self) -> Iterator[str]:
        """Phases of variants that there are not."""
        for name, variant in self.variants.items():
            for phase in variant.phases:
                if phase not in self.phases:
                    yield f"variants.{name}.phases: no phase {phase!r}; there are {', '.join(self.phases)}"

    def _wrong_trainings(self) -> Iterator[str]:
        """What no training takes of the keys that variants and phases change, each where it is written."""
        told: set[tuple[KeyPath, str]] = set()
        for name in self.trained_variants:
            for phase in self.phases_of(name):
                for key, text in self._misfits_of(name, phase):
                    place = self.origin_of(name, phase, key) if key else ("variants", name, "training")
                    if (place, text) not in told:
                        told.add((place, text))
                        yield f"{'.'.join(map(str, place))}: {text}{'' if key else f' (in phase {phase})'}"

    def _misfits_of(self, variant: str, phase: str) -> list[tuple[KeyPath, str]]:
        try:
            self.training_of(variant, phase)
        except ValidationError as problem:
            return [explained for item in problem.errors() for explained in explain(TrainingSettings, item)]
        return []

    def _wrong_pick(self) -> Iterator[str]:
        """A LoRA or a phase picked by hand that there is not."""
        if self.pick is None:
            return
        phases = {name: [FILES] if variant.lora else self.phases_of(name) for name, variant in self.variants.items()}
        phases |= {name: [SURGERY] for name in self.candidates}
        variant, phase = self.pick.variant, self.pick.phase
        if variant not in phases:
            yield f"pick.variant: no variant {variant!r}; {nearest(variant, phases)}"
        elif phase not in phases[variant]:
            yield f"pick.phase: {variant!r} has no phase {phase!r}; {nearest(phase, phases[variant])}"

    def _wrong_step(self) -> Iterator[str]:
        """A step picked by hand at which nothing is saved, where the settings alone say what is."""
        if self.pick is None or self.pick.variant not in self.native_variants:
            return
        if self.pick.phase not in self.phases_of(self.pick.variant):
            return
        training = self.training_of(self.pick.variant, self.pick.phase)
        if training.steps != "auto" and self.pick.step not in training.saved_steps:
            yield (
                f"pick.step: {self.pick.variant}/{self.pick.phase} saves no checkpoint at step {self.pick.step}; "
                f"Allowed: {', '.join(map(str, training.saved_steps))}"
            )

    def regularised(self, phase: str, variant: str) -> bool:
        """Whether a training reads the regularisation set."""
        return self.training_of(variant, phase).losses.prior_preservation is not None

    def class_caption(self, phase: str, variant: str) -> str:
        """The caption of pictures of the class, where a training reads them."""
        return self.regularisation.caption_of(self.class_word) if self.regularised(phase, variant) else ""

    def _wrong_regularisation(self) -> Iterator[str]:
        """A loss without the pictures that it reads, or pictures that nothing reads."""
        native = self.native_variants
        read = any(self.regularised(phase, variant) for variant in native for phase in self.phases_of(variant))
        if read and self.regularisation.is_empty:
            yield (
                "training.losses.prior_preservation: there are no pictures of the class; give regularisation.photos, or let "
                "the base model draw some (regularisation.drawn: 100)"
            )
        if not read and not self.regularisation.is_empty:
            yield "regularisation: no training reads it; set training.losses.prior_preservation, or remove it"

    def _wrong_masks(self) -> Iterator[str]:
        """Another kind of mask than the subject's, of which a sample carries one; a training may leave it out."""
        kind = self.training.masked_loss.kind
        found: dict[str, str] = {}
        for name in self.trained_variants:
            for phase in self.phases_of(name):
                own = self.training_of(name, phase).masked_loss.kind
                if own is not None and own != kind:
                    of_phase = sets_mask_kind(self.phases[phase].training)
                    found[f"phases.{phase}" if of_phase else f"variants.{name}"] = own
        for place, own in found.items():
            yield (
                f"{place}.training.masked_loss.kind: {own} is not the subject's own (training.masked_loss.kind: {kind or 'null'}), "
                "whose masks alone its samples carry. Make two subjects to compare kinds of masks, or set the subject's to "
                f"{own}; variants and phases may then say null, to learn the whole picture"
            )

    def _wrong_sources(self) -> Iterator[str]:
        """Diptychs without a source; groups and ablation tables that are not there, or that would wait for the training that reads them."""
        for name in self.native_variants:
            phases = self.phases_of(name)
            for place, phase in enumerate(phases):
                training, group = self.training_of(name, phase), self.phases[phase].group
                if training.buckets.diptych and self.kind != "pairs":
                    yield f"training.buckets.diptych: recipe {self.recipe!r} has no sources to put on the left"
                if training.buckets.diptych != self.training.buckets.diptych:
                    yield (
                        f"variants.{name}, phase {phase}: training.buckets.diptych is {str(training.buckets.diptych).lower()}, "
                        "unlike the subject's, but all checkpoints of a subject are drawn alike; make two subjects to compare"
                    )
                if training.losses.image_slider and self.kind != "pairs":
                    yield f"training.losses.image_slider: recipe {self.recipe!r} has no sources; take losses.slider"
                groups = self.training_of(name, phases[place - 1]).adapter.groups if place else {}
                if group is not None and place and group not in groups:
                    yield f"phases.{phase}.init: the phase before saves no group {group!r}; {nearest(group, groups)}"
                source = training.targets_from.ablation if training.targets_from else None
                if source is None:
                    continue
                if source not in self.ablation:
                    yield f"training.targets_from.ablation: there is none; {nearest(source, self.ablation)}"
                elif not self._is_ready_before(self.ablation[source].of.variant, self.ablation[source].of.file):
                    yield (
                        f"training.targets_from.ablation: {source!r} takes apart a LoRA that may wait for variant {name!r}. Its "
                        "`of` must be a file, or a variant whose targets come from no ablation"
                    )

    def _is_ready_before(self, variant: str | None, file: str | None) -> bool:
        """Whether a LoRA exists before any training that takes its targets from an ablation."""
        if variant is None:
            return file is not None
        trained = variant in self.native_variants
        return trained and not any(self.training_of(variant, one).targets_from for one in self.phases_of(variant))

    def _wrong_trainers(self) -> Iterator[str]:
        """What is wrong with other trainers as trainers of a variant."""
        runnable = [name for name in TRAINERS if name not in HOSTED]
        for name in self.trainers:
            if name not in runnable:
                yield f"trainers.{name}: no trainer that runs here; {nearest(name, runnable)}"
        for name, variant in self.variants.items():
            if variant.trainer is None:
                continue
            if variant.trainer not in runnable:
                yield f"variants.{name}.trainer: no trainer that runs here: {variant.trainer!r}; {nearest(variant.trainer, runnable)}"
            elif variant.trainer not in self.trainers:
                yield (
                    f"variants.{name}.trainer: {variant.trainer} has no command; say how it is started on this machine in "
                    f"trainers.{variant.trainer}.command"
                )
            for place, phase in enumerate(self.phases_of(name)):
                init = self.phases[phase].init
                follows = self.phases[phase].follows
                if (init != "scratch" and not follows) or (follows and place > 0):
                    yield (
                        f"variants.{name}.trainer: {variant.trainer} starts from scratch, but phases.{phase}.init is {init!r}; "
                        f"give the variant one phase (`phases: [{phase}]`) or set that init to scratch"
                    )


def sets_mask_kind(training: Mapping[str, object]) -> bool:
    """Whether changed keys of `training` name a kind of mask."""
    masked_loss = training.get("masked_loss")
    return isinstance(masked_loss, Mapping) and masked_loss.get("kind") is not None


def holds(values: Any, key: KeyPath) -> bool:
    """Whether nested mappings hold a key."""
    for part in key:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def merge_settings(
    lower: dict[str, Any], upper: dict[str, Any], replaced: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Lay `upper` over `lower`: mappings merge key by key, all else (and the named maps in `replaced`) is replaced."""
    merged = dict(lower)
    for key, value in upper.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key not in replaced
        merged[key] = merge_settings(merged[key], value) if both else value
    return merged
