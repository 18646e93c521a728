"""What the rules about phases need while Snakemake parses them, and what lies behind the checkpoint.

A phase's manifest is written by the decision, but where the losses of a training settle it: there the decision writes
candidates, and `refine_phase` the manifest. Either way its readers ask for the decision first.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from likeness.code import code_digest
from likeness.config.phases import DecisionStage, PhaseSettings, RefineStage
from likeness.config.project import Project
from likeness.config.train_losses import parts_of
from likeness.program import as_argument
from likeness.store import canonical_json
from likeness.workflow_files import ProjectFiles

Unread = dict[str, Any]
ONLY_OF_TRAINING = {"init", "steps", "learning_rate", "training", "losses_of"}


class PhasePlan(ProjectFiles):
    """The part of the plan that is about the decision and the manifests; its methods serve as input and params functions."""

    def __init__(self, project: Project) -> None:
        super().__init__(project)
        self.checkpoints: Any = None

    def params(self, settings: Any, script: str, *packages: str, unread: Unread | None = None, **beside: Any) -> str:
        """Settings and code of a rule as one canonical JSON string.

        `unread` names the settings that its program never looks at, so that they start nothing. What stands `beside` them
        starts the job too, and is left out where it is empty.
        """
        values = settings.model_dump(mode="json", exclude=unread) if hasattr(settings, "model_dump") else settings
        more = {name: value for name, value in beside.items() if value}
        return as_argument(canonical_json({"settings": values, "code": code_digest(script, *packages), **more}))

    # ---- the decision ----------------------------------------------------------------------------------------------

    def decide_phases(self, name: str) -> Callable[[Any], str]:
        """The params function of one subject's checkpoint, which has no wildcards of its own."""
        subject = self.subjects[name]
        stage = DecisionStage(
            kind=subject.kind,
            recipe=subject.recipe,
            phases={phase: self._decided_phase(name, phase) for phase in subject.phases},
            order=tuple(subject.phases),
            refined=tuple(subject.refined_phases),
            limits=subject.limits,
            min_identity=subject.faces.min_identity,
            held_out=subject.held_out,
            mask_kind=subject.training.masked_loss.kind,
            always=subject.always,
            never=subject.never,
        )
        return lambda wildcards: self.params(stage, "decide_phases", unread={"phases": {"__all__": ONLY_OF_TRAINING}})

    def _decided_phase(self, subject: str, phase: str) -> PhaseSettings:
        """A phase as far as it is settled before any training."""
        settings = self.subjects[subject].phases[phase]
        if phase not in self.subjects[subject].refined_phases:
            return settings
        parts = parts_of(settings, f"phases.{phase}")
        return settings.model_copy(update={"where": parts.where, "order_by": parts.order_by, "top": None})

    def decision_outputs(self, subject: str) -> dict[str, str]:
        """Named outputs of the decision: one manifest a phase, or its candidates, the holdout, faces of each, the decisions."""
        folder, refined = f"results/{subject}/phases", self.subjects[subject].refined_phases
        named = {
            f"phase_{slug(phase)}": f"{folder}/{'candidates/' if phase in refined else ''}{phase}.parquet"
            for phase in self.subjects[subject].phases
        }
        samples = [*self.subjects[subject].phases, "holdout"]
        named |= {f"faces_{slug(name)}": f"{folder}/faces/{name}.parquet" for name in samples}
        return named | {"holdout": f"{folder}/holdout.parquet", "decisions": f"{folder}/decisions.parquet"}

    # ---- behind it -------------------------------------------------------------------------------------------------

    def decided(self, subject: str) -> Any:
        """Outputs of the phase decision; asking for them is what cuts off jobs that would run for nothing."""
        return getattr(self.checkpoints, checkpoint_name(subject)).get().output

    def manifest(self, wildcards: Any) -> str:
        """The manifest of one phase."""
        return self._manifest(wildcards.subject, wildcards.phase)

    def manifests(self, wildcards: Any) -> list[str]:
        """The manifests of all phases."""
        return [self._manifest(wildcards.subject, phase) for phase in self.subjects[wildcards.subject].phases]

    def _manifest(self, subject: str, phase: str) -> str:
        decided = self.decided(subject)
        if phase in self.subjects[subject].refined_phases:
            return f"results/{subject}/phases/{phase}.parquet"
        return decided[f"phase_{slug(phase)}"]

    def holdout(self, wildcards: Any) -> str:
        return self.decided(wildcards.subject)["holdout"]

    def sample_faces(self, wildcards: Any, samples: str) -> str:
        """The subject's faces in the samples of a phase, or in the `holdout`."""
        return self.decided(wildcards.subject)[f"faces_{slug(samples)}"]

    # ---- what losses settle ----------------------------------------------------------------------------------------

    @property
    def refined_phase(self) -> str:
        """Pattern of the phases that losses settle; a name counts only behind its own subject's path."""
        names = [
            rf"(?<=results/{name}/phases/{folder}){phase}"
            for name, subject in self.subjects.items()
            for folder in ("", "refined/")
            for phase in subject.refined_phases
        ]
        return "|".join(names) or "(?!)"

    def candidates(self, wildcards: Any) -> str:
        """What the decision leaves of a phase for the losses to settle."""
        return self.decided(wildcards.subject)[f"phase_{slug(wildcards.phase)}"]

    def manifest_before(self, wildcards: Any) -> str:
        """The manifest of the phase before."""
        return self._manifest(wildcards.subject, self._before(wildcards))

    def losses_to_read(self, wildcards: Any) -> list[str]:
        """The log of the training whose losses a phase reads, if it reads any."""
        variant = self.subjects[wildcards.subject].phases[wildcards.phase].losses_of
        if variant is None:
            return []
        return [f"results/{wildcards.subject}/train/{variant}/{self._before(wildcards)}/log.parquet"]

    def losses_flag(self, wildcards: Any) -> str:
        return " ".join(f"--losses {path}" for path in self.losses_to_read(wildcards))

    def _before(self, wildcards: Any) -> str:
        pairs = pairwise(self.subjects[wildcards.subject].phases)
        return next(before for before, phase in pairs if phase == wildcards.phase)

    def refine_phase(self, wildcards: Any) -> str:
        phase = self.subjects[wildcards.subject].phases[wildcards.phase]
        parts = parts_of(phase, f"phases.{wildcards.phase}")
        stage = RefineStage(where=parts.loss_where, order_by=parts.loss_order_by, top=phase.top, nested=phase.nested)
        return self.params(stage, "refine_phase")

    @property
    def refined_tables(self) -> list[str]:
        """What became of the candidates of every phase that losses settle."""
        return [
            f"results/{name}/phases/refined/{phase}.parquet"
            for name, subject in self.subjects.items()
            for phase in subject.refined_phases
        ]

    # ---- exports ---------------------------------------------------------------------------------------------------

    def exported(self, subject: str) -> list[str]:
        """Datasets for other trainers."""
        return self._exported(subject, list(self.subjects[subject].phases))

    def exported_untrained(self, subject: str) -> list[str]:
        """Those that need no training: of phases that the decision alone settles."""
        settings = self.subjects[subject]
        return self._exported(subject, [phase for phase in settings.phases if phase not in settings.refined_phases])

    def _exported(self, subject: str, phases: list[str]) -> list[str]:
        return [
            f"results/{subject}/exports/{phase}/{trainer}/files.json"
            for trainer, export in self.subjects[subject].export.items()
            for phase in (export.phases or self.subjects[subject].phases)
            if phase in phases
        ]


def slug(name: str) -> str:
    """A name as a Python identifier."""
    return name.replace("-", "_")


def checkpoint_name(subject: str) -> str:
    return f"decide_phases_{slug(subject)}"
