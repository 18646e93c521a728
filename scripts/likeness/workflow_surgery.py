"""What the rules of surgery, and of what is measured of LoRAs and blocks, need while Snakemake parses them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from likeness.config.evaluation import ChoiceSettings, ChoiceStage, EvaluationSettings
from likeness.config.surgery import SURGERY, AblationStage, CrosstalkStage, Parent, ProbeStage, SurgeryStage
from likeness.config.training import BucketSettings

if TYPE_CHECKING:
    from likeness.workflow import Plan


class SurgeryPlan:
    """The part of the plan that is about LoRAs made of other LoRAs; its methods serve as input and params functions.

    `best` as a parent is chosen among what no surgery made, so that no candidate can wait for itself.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    # ---- where things lie ------------------------------------------------------------------------------------------

    def record(self, subject: str, name: str) -> str:
        """The list of one LoRA that surgery makes, shaped like a training's steps.json."""
        return f"results/{subject}/{SURGERY}/{name}.json"

    def records(self, subject: str) -> list[str]:
        return [self.record(subject, name) for name in self._plan.subjects[subject].candidates]

    def scores(self, subject: str) -> list[str]:
        """Score tables of everything that surgery makes."""
        names = self._plan.subjects[subject].candidates
        return [f"results/{subject}/evaluation/{name}/{SURGERY}/scores.parquet" for name in names]

    def steps_of(self, wildcards: Any) -> str:
        """Where the LoRAs of one variant and phase are listed."""
        if wildcards.phase == SURGERY:
            return self.record(wildcards.subject, wildcards.variant)
        return f"results/{wildcards.subject}/train/{wildcards.variant}/{wildcards.phase}/steps.json"

    def trained_steps(self, wildcards: Any) -> list[str]:
        """Where all LoRAs are listed that were trained."""
        return [
            f"results/{wildcards.subject}/train/{variant}/{phase}/steps.json"
            for variant, phase in self._plan.trained(wildcards.subject)
        ]

    def checkpoint_scores(self, wildcards: Any) -> list[str]:
        """Score tables of all checkpoints and finished files, without the base and without what surgery made."""
        plan, folder = self._plan, f"results/{wildcards.subject}/evaluation"
        trained = [f"{folder}/{variant}/{phase}/scores.parquet" for variant, phase in plan.trained(wildcards.subject)]
        return trained + [f"{folder}/{name}/files/scores.parquet" for name in plan.external(wildcards.subject)]

    def measured(self, subject: str) -> list[str]:
        """Tables of blocks taken apart, pairs of LoRAs and swapped prompts."""
        settings, folder = self._plan.subjects[subject], f"results/{subject}"
        tables = [f"{folder}/ablation/{name}.parquet" for name in settings.ablation]
        tables += [f"{folder}/crosstalk/{name}/losses.parquet" for name in settings.crosstalk]
        return tables + [f"{folder}/probe/{name}.parquet" for name in settings.probe]

    @property
    def all_measured(self) -> list[str]:
        return [table for subject in self._plan.subjects for table in self.measured(subject)]

    # ---- parents ---------------------------------------------------------------------------------------------------

    def _parents(self, subject: str, parents: Iterable[Parent]) -> list[str]:
        """One path a parent that is not `best`: its file, or the list that it stands in."""
        settings, paths = self._plan.subjects[subject], []
        for parent in parents:
            if parent.file is not None:
                paths.append(parent.file)
            elif parent.subject is not None:
                paths.append(f"results/{parent.subject}/lora/published.json")
            elif parent.variant in settings.candidates:
                paths.append(self.record(subject, parent.variant or ""))
            elif parent.variant is not None:
                phase = parent.phase or settings.phases_of(parent.variant)[-1]
                paths.append(f"results/{subject}/train/{parent.variant}/{phase}/steps.json")
        return paths

    def _of_candidate(self, wildcards: Any) -> tuple[Parent, ...]:
        return self._plan.subjects[wildcards.subject].candidates[wildcards.name].parents

    def _of_ablation(self, wildcards: Any) -> tuple[Parent, ...]:
        return (self._plan.subjects[wildcards.subject].ablation[wildcards.name].of,)

    def _of_crosstalk(self, wildcards: Any) -> tuple[Parent, ...]:
        entry = self._plan.subjects[wildcards.subject].crosstalk[wildcards.name]
        return (entry.of, entry.beside)

    def parents_of_candidate(self, wildcards: Any) -> list[str]:
        return self._parents(wildcards.subject, self._of_candidate(wildcards))

    def parents_of_ablation(self, wildcards: Any) -> list[str]:
        return self._parents(wildcards.subject, self._of_ablation(wildcards))

    def parents_of_crosstalk(self, wildcards: Any) -> list[str]:
        return self._parents(wildcards.subject, self._of_crosstalk(wildcards))

    def _scores_for_best(self, wildcards: Any, parents: Iterable[Parent]) -> list[str]:
        if not any(parent.best for parent in parents):
            return []
        return [
            *self.checkpoint_scores(wildcards),
            f"results/{wildcards.subject}/evaluation/base/scores.parquet",
        ]

    def scores_of_candidate(self, wildcards: Any) -> list[str]:
        """Tables from which `best` is chosen, where a parent is that."""
        return self._scores_for_best(wildcards, self._of_candidate(wildcards))

    def scores_of_ablation(self, wildcards: Any) -> list[str]:
        return self._scores_for_best(wildcards, self._of_ablation(wildcards))

    def scores_of_crosstalk(self, wildcards: Any) -> list[str]:
        return self._scores_for_best(wildcards, self._of_crosstalk(wildcards))

    def steps_of_candidate(self, wildcards: Any) -> list[str]:
        return self.trained_steps(wildcards) if self.scores_of_candidate(wildcards) else []

    def steps_of_ablation(self, wildcards: Any) -> list[str]:
        return self.trained_steps(wildcards) if self.scores_of_ablation(wildcards) else []

    def steps_of_crosstalk(self, wildcards: Any) -> list[str]:
        return self.trained_steps(wildcards) if self.scores_of_crosstalk(wildcards) else []

    def flags_of_candidate(self, wildcards: Any) -> str:
        """Flags with the files of all parents."""
        return self._flags(wildcards, self._of_candidate(wildcards))

    def flags_of_ablation(self, wildcards: Any) -> str:
        return self._flags(wildcards, self._of_ablation(wildcards))

    def flags_of_crosstalk(self, wildcards: Any) -> str:
        return self._flags(wildcards, self._of_crosstalk(wildcards))

    def _flags(self, wildcards: Any, parents: Iterable[Parent]) -> str:
        listed = tuple(parents)
        flags, paths = [], self._parents(wildcards.subject, listed)
        if paths:
            flags.append(f"--parents {shlex.join(paths)}")
        if any(parent.best for parent in listed):
            flags.append(f"--scores {shlex.join(self._scores_for_best(wildcards, listed))}")
            steps = self.trained_steps(wildcards)
            flags += [f"--checkpoints {shlex.join(steps)}"] if steps else []
            flags += [self._plan.external_flag(wildcards)]
        return " ".join(filter(None, flags))

    # ---- both subjects of a pair -----------------------------------------------------------------------------------

    def _sides(self, wildcards: Any) -> list[SimpleNamespace]:
        """Wildcards of the subjects whose metrics a pair of LoRAs is measured by: this one, and the other if it is one."""
        other = self._plan.subjects[wildcards.subject].crosstalk[wildcards.name].beside.subject
        return [SimpleNamespace(subject=name) for name in (wildcards.subject, other) if name is not None]

    def subjects_of_crosstalk(self, wildcards: Any) -> list[str]:
        return [side.subject for side in self._sides(wildcards)]

    def bases_of_crosstalk(self, wildcards: Any) -> list[str]:
        return [f"results/{side.subject}/evaluation/base/scores.parquet" for side in self._sides(wildcards)]

    def holdouts_of_crosstalk(self, wildcards: Any) -> list[str]:
        return [self._plan.holdout(side) for side in self._sides(wildcards)]

    def other_manifests(self, wildcards: Any) -> list[str]:
        return [path for side in self._sides(wildcards)[1:] for path in self._plan.manifests(side)]

    def images_of_crosstalk(self, wildcards: Any) -> list[str]:
        return [self._plan.index_of_subject(side) for side in self._sides(wildcards)]

    def judges_of_crosstalk(self, wildcards: Any) -> list[str]:
        found = [model for side in self._sides(wildcards) for model in self._plan.miniature_judge(side)]
        return list(dict.fromkeys(found))

    # ---- params ----------------------------------------------------------------------------------------------------

    def _choice(self, subject: str, parents: Iterable[Parent]) -> ChoiceStage:
        """How `best` is found where a parent is that, the number of finalists aside; always the same where none is."""
        if not any(parent.best for parent in parents):
            return ChoiceStage(choice=ChoiceSettings(), finalists=1, recipe="")
        return self._plan.choice_slice(subject, False).model_copy(update={"finalists": 1})

    def make_surgery(self, wildcards: Any) -> str:
        subject = self._plan.subjects[wildcards.subject]
        stage = SurgeryStage(
            surgery=subject.candidates[wildcards.name],
            base_model=self._plan.resolved(subject, base_model="base").base_model,
            choice=self._choice(wildcards.subject, self._of_candidate(wildcards)),
            offline=self._plan.project.offline,
        )
        return self._plan.params(stage, "make_surgery")

    def ablate_lora(self, wildcards: Any) -> str:
        subject = self._plan.subjects[wildcards.subject]
        stage = AblationStage(
            ablation=subject.ablation[wildcards.name],
            scoring=self._plan.score_slice(wildcards.subject),
            choice=self._choice(wildcards.subject, self._of_ablation(wildcards)),
        )
        unread = {"scoring": {"evaluation": {"strengths", "finalists", "distilled_model"}}}
        return self._plan.params(stage, "ablate_lora", "evaluation/metrics", "faces", unread=unread)

    def measure_crosstalk(self, wildcards: Any) -> str:
        stage = CrosstalkStage(
            crosstalk=self._plan.subjects[wildcards.subject].crosstalk[wildcards.name],
            scorings=tuple(self._plan.score_slice(side.subject) for side in self._sides(wildcards)),
            choice=self._choice(wildcards.subject, self._of_crosstalk(wildcards)),
        )
        unread = {"scorings": {"__all__": {"evaluation": {"strengths", "finalists", "distilled_model"}}}}
        return self._plan.params(stage, "measure_crosstalk", "evaluation/metrics", "faces", unread=unread)

    def probe_blocks(self, wildcards: Any) -> str:
        """A probe draws with the base alone and names its own prompts: nothing else of the subject is in its slice."""
        subject = self._plan.subjects[wildcards.subject]
        never_read = {"prompts": {}, "recipe": "", "kind": "", "buckets": BucketSettings()}
        scoring = self._plan.score_slice(wildcards.subject).model_copy(update=never_read)
        stage = ProbeStage(probe=subject.probe[wildcards.name], scoring=scoring)
        drawn_by = {"sampling_steps", "guidance_scale", "width_px", "height_px", "batch_size", "precision"}
        unread = EvaluationSettings.model_fields.keys() - drawn_by - {"clip", "cpu_threads"}
        return self._plan.params(
            stage, "probe_blocks", unread={"scoring": {"evaluation": unread, "has_recogniser": True}}
        )
