"""The whole configuration: what holds for all subjects, and the subjects themselves."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from likeness.config.base import KeysOf, Settings
from likeness.config.subject import Name, Subject


class Project(Settings):
    """Top-level keys of config/config.yaml; subjects also come one a file from config/subjects/."""

    shards: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Jobs into which each stage of a subject is split; more only helps large sets and clusters.",
    )
    store: str = Field(
        default="results/.store", description="Folder of all items that were paid for; every node must see it."
    )
    offline: bool = Field(
        default=True, description="Never download; a missing model is an error that says where to put it."
    )
    cpu_threads: int = Field(
        default=1, ge=1, le=64, description="Threads of numeric libraries in the per-photo stages."
    )
    gpus_per_job: int = Field(
        default=1,
        ge=0,
        le=1,
        description="GPUs that a heavy job asks for; 0 on a machine without one, so that jobs run side by side.",
    )
    defaults: Annotated[dict[str, object], KeysOf(Subject)] = Field(
        default_factory=dict, description="Keys of a subject, for all subjects that do not say otherwise."
    )
    subjects: dict[Name, Subject] = Field(
        default_factory=dict, description="Subjects by name, as an alternative to one file each."
    )
