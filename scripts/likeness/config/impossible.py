"""What cannot work, said before any job: it is seen only where a subject's settings meet the model that they are for.

Each mistake comes with the path of its key, so that file and line can be told.
"""

from __future__ import annotations

from collections.abc import Iterator

from likeness.backends import backend_names
from likeness.captions.shipped import CAPTIONS
from likeness.config.conditions import wrong_conditions
from likeness.config.faces import NO_DETECTOR
from likeness.config.source import KeyPath
from likeness.config.subject import Subject
from likeness.config.surgery import OTHER
from likeness.config.training import TrainingSettings
from likeness.errors import UserError, nearest
from likeness.faces.shipped import FACES
from likeness.klein.family import Layout, known_layout
from likeness.klein.targets import target_regex
from likeness.masks.shipped import MASKS
from likeness.training.shape import chosen, group_modules, weight_shapes

Mistake = tuple[KeyPath, str]


def impossible(subject: Subject) -> Iterator[Mistake]:
    """Settings that no training and no surgery can follow, each once."""
    found = [*_unknown_backends(subject), *_without_faces(subject), *_distilled(subject), *wrong_conditions(subject)]
    layout = known_layout(model_name(subject))
    if layout is not None:
        found += [*_absent_targets(subject, layout), *_absent_blocks(subject, layout)]
    yield from dict.fromkeys(found)


def model_name(subject: Subject) -> str:
    """What the base model is called by its source alone; a hub's snapshot is called after its repository."""
    folder, _, _ = subject.base_model.source.lower().rstrip("/").partition("/snapshots/")
    return folder.rpartition("/")[2]


def _unknown_backends(subject: Subject) -> Iterator[Mistake]:
    """Names that neither the project nor an installed package registers at the door where they are looked up."""
    chosen_names: list[tuple[KeyPath, str, str, list[str]]] = [
        (("faces", "backend"), subject.faces.backend, "faces", [*FACES, NO_DETECTOR]),
        (("masks", "backend"), subject.masks.backend, "masks", [*MASKS]),
        (("captions", "backend"), subject.captions.backend, "captions", [*CAPTIONS]),
        (("evaluation", "recogniser_backend"), subject.evaluation.recogniser_backend, "faces", [*FACES]),
    ]
    for key, name, door, shipped in chosen_names:
        # Looking for what is installed takes longer than all other checks.
        if name not in shipped and name not in (known := backend_names(door, shipped)):
            yield key, f"no backend {name!r}; {nearest(name, known)}"


def _without_faces(subject: Subject) -> Iterator[Mistake]:
    if subject.faces.backend == NO_DETECTOR and subject.recipe != "style":
        yield (
            ("faces", "backend"),
            f"none finds no face, and recipe {subject.recipe!r} trains only on photos with one. Choose a detector",
        )
    if subject.faces.backend == NO_DETECTOR and subject.reference:
        yield ("reference",), "names photos of a face, but faces.backend is none. Remove it, or choose a detector"


def _distilled(subject: Subject) -> Iterator[Mistake]:
    name = model_name(subject)
    if "klein" not in name or "base" in name:
        return
    for variant in subject.trained_variants:
        if not all(subject.training_of(variant, phase).allow_distilled for phase in subject.phases_of(variant)):
            yield (
                ("base_model",),
                f"{subject.base_model.source!r} is distilled; training collapses early. "
                "Use the base checkpoint, or set training.allow_distilled",
            )


def _absent_targets(subject: Subject, layout: Layout) -> Iterator[Mistake]:
    """Choices of modules that the model does not have, or that a training does not train."""
    for variant in subject.trained_variants:
        for phase in subject.phases_of(variant):
            training = subject.training_of(variant, phase)
            for key, text in _wrong_choices(training, layout, variant in subject.native_variants):
                yield subject.origin_of(variant, phase, key), text


def _wrong_choices(training: TrainingSettings, layout: Layout, is_native: bool) -> Iterator[Mistake]:
    try:
        target_regex(training.targets, layout)
    except UserError as error:
        yield _told(("targets",), error)
        return
    adapter = training.adapter
    choices: list[tuple[KeyPath, str]] = [(("adapter", "ranks", choice), choice) for choice in adapter.ranks]
    choices += [(("adapter", "alphas", choice), choice) for choice in adapter.alphas]
    choices += [(("adapter", "groups", name), choice) for name, choice in adapter.groups.items()]
    choices += [(("adapter", "freeze"), adapter.freeze)] if adapter.freeze else []
    wrong = False
    for key, choice in choices if is_native else []:
        try:
            chosen(choice, training, layout, ".".join(map(str, key)))
        except UserError as error:
            wrong = True
            yield _told(key, error)
    if not is_native or wrong:
        return
    for key, count in ((("adapter", "lokr_factor"), weight_shapes), (("adapter", "groups"), group_modules)):
        try:
            count(training, layout)
        except UserError as error:
            yield _told(key, error)


def _told(key: KeyPath, error: UserError) -> Mistake:
    """The mistake without the key that its message begins with."""
    return key, str(error).removeprefix("targets: ").removeprefix(f"training.{'.'.join(map(str, key))}: ")


def _absent_blocks(subject: Subject, layout: Layout) -> Iterator[Mistake]:
    """Blocks to weigh that the model does not have."""
    counts = {"double": layout.num_double, "single": layout.num_single}
    for name, entry in subject.surgery.items():
        for key in entry.blocks:
            kind, _, indices = key.partition(".")
            if key != OTHER and indices and int(indices.rpartition("-")[2]) >= counts[kind]:
                yield (
                    ("surgery", name, "blocks", key),
                    f"{layout.name} has {counts[kind]} {kind} blocks. Allowed: 0 to {counts[kind] - 1}",
                )
