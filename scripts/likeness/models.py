"""The models that a project needs: which ones, where they lie on this machine, and fetching them before a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from likeness.config.base import ModelSource, Settings
from likeness.config.faces import NO_DETECTOR
from likeness.config.subject import MINIATURE, Subject
from likeness.errors import UserError
from likeness.evaluation.judge import DESCRIPTOR_BACKEND

PACKS = Path(".insightface") / "models"
"""Below the home folder: where insightface looks for a pack by its name."""
WITHOUT_WEIGHTS = frozenset({"grabcut", "folder"})
"""Backends of masks that need none."""
WHOLE_PIPELINES = frozenset({"base_model", "evaluation.distilled_model"})


class WantedModel(Settings):
    """One model and the configuration key that names it."""

    subject: str
    key: str
    model: ModelSource

    @property
    def label(self) -> str:
        """Where the configuration names it."""
        return f"{self.subject}: {self.key}"


class FetchStage(Settings):
    """The slice that fetch_models reads."""

    wanted: tuple[WantedModel, ...]


def wanted_models(name: str, subject: Subject) -> Iterator[WantedModel]:
    """The models that one subject's configured backends load; those that the workflow makes itself are left out."""
    faces, evaluation = subject.faces, subject.evaluation
    judged = looks_for_faces(subject) and evaluation.recogniser_backend != DESCRIPTOR_BACKEND
    found: dict[str, ModelSource | None] = {
        "base_model": subject.base_model,
        "faces.model": faces.model if looks_for_faces(subject) and faces.backend != DESCRIPTOR_BACKEND else None,
        "faces.recogniser": faces.recogniser if faces.backend == "yolo" else None,
        "masks.model": mask_model(subject),
        "quality.body_pose": subject.quality.body_pose,
        "captions.model": subject.captions.model if subject.captions.backend == "transformers" else None,
        "evaluation.recogniser": evaluation.recogniser if judged else None,
        "evaluation.distilled_model": evaluation.distilled_model,
        "evaluation.lpips": evaluation.lpips and as_path(evaluation.lpips),
        "evaluation.clip": evaluation.clip,
        "evaluation.body_pose": evaluation.body_pose,
    }
    for key, model in [*found.items(), *models_of_losses(subject)]:
        if model is not None and model.source != MINIATURE:
            yield WantedModel(subject=name, key=key, model=model)


def looks_for_faces(subject: Subject) -> bool:
    """Whether anybody's face matters: in pictures that need not show people none is detected, masked or recognised."""
    return subject.faces.backend != NO_DETECTOR


def mask_model(subject: Subject) -> ModelSource | None:
    """The model that makes masks of faces here, or None where none is loaded."""
    needs_weights = looks_for_faces(subject) and subject.masks.backend not in WITHOUT_WEIGHTS
    return subject.masks.model if needs_weights else None


def models_of_losses(subject: Subject) -> list[tuple[str, ModelSource]]:
    """Keys and models of the losses of every training, each once; they are read from paths of this machine alone."""
    found: list[tuple[str, ModelSource]] = []
    for variant in subject.native_variants:
        for phase in subject.phases_of(variant):
            for name, loss in subject.training_of(variant, phase).losses:
                model = getattr(loss, "model", None)
                if isinstance(model, ModelSource):
                    one = f"training.losses.{name}.model", model if model.source == MINIATURE else as_path(model)
                    found += [one] if one not in found else []
    return found


def as_path(model: ModelSource) -> ModelSource:
    """A model that is read from a path alone, written so that it is never taken for a name on the hub or of a pack."""
    if model.source.startswith((".", "~", "/")):
        return model
    return model.model_copy(update={"source": f"./{model.source}"})


def is_hub_id(source: str) -> bool:
    """Whether a source is `owner/name` on the hub and not a path of this machine."""
    return source.count("/") == 1 and not source.startswith((".", "~", "/")) and not Path(source).exists()


def found_at(model: ModelSource) -> Path | None:
    """Where a model lies on this machine, or None; nothing is downloaded."""
    local = Path(model.source).expanduser()
    pack = Path.home() / PACKS / model.source
    if local.exists() or ("/" not in model.source and pack.is_dir()):
        return local if local.exists() else pack
    if not is_hub_id(model.source):
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in ("model_index.json", "config.json"):
        cached = try_to_load_from_cache(model.source, name, revision=model.revision)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def how_to_get(model: ModelSource) -> str:
    """What to do about a model that is not here."""
    if is_hub_id(model.source):
        return f"{model.source} is not on this machine; `make models` fetches it (gated models: `hf auth login` first)"
    if "/" in model.source or Path(model.source).suffix:
        return f"there is no file or folder {model.source}; put the weights there, or name where they lie"
    return (
        f"{model.source} is not on this machine; put the pack's files into ~/{PACKS / model.source} or name a folder "
        "(insightface's packs are for non-commercial research only, so nothing fetches them by itself)"
    )


def refusal_of(model: ModelSource) -> str | None:
    """Why the hub would not hand over a model to whoever is logged in here, or None where it would; nothing is downloaded."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().auth_check(model.source)
    except GatedRepoError:
        return f"{model.source} is gated: accept its licence on its page and log in with `hf auth login`"
    except RepositoryNotFoundError:
        return f"the hub has no {model.source} for whoever is logged in here; check its name, or log in with `hf auth login`"
    except OSError as error:
        return f"the hub could not be asked for {model.source} ({type(error).__name__})"
    return None


def fetch_models(wanted: Iterable[WantedModel]) -> list[dict[str, Any]]:
    """Fetch what the hub has, find the rest, and verify what has an expected sha256; one record a model.

    Raises UserError that names every model which could not be had, and what to do about each.
    """
    records, failures = [], []
    for one in wanted:
        print(f"{one.label}: {one.model.source}", flush=True)
        try:
            place = fetch_model(one)
        except UserError as error:
            failures.append(f"{one.label}: {error}")
            continue
        records.append({"key": one.label, **one.model.model_dump(mode="json"), "commit": commit_of(place)})
    if failures:
        raise UserError(f"{len(failures)} models could not be had:\n  " + "\n  ".join(failures))
    return records


def fetch_model(wanted: WantedModel) -> Path:
    """Have one model on this machine and return where; UserError where that cannot be or its bytes are not the expected ones."""
    model = wanted.model
    if wanted.key in WHOLE_PIPELINES and (is_hub_id(model.source) or Path(model.source).expanduser().exists()):
        return fetch_pipeline(model)
    if is_hub_id(model.source):
        from likeness.faces.weights import hub_folder

        place = hub_folder(wanted.key, model, (), offline=False)
    else:
        found = found_at(model)
        if found is None:
            raise UserError(how_to_get(model))
        place = found
    check_bytes(wanted.key, model, place)
    return place


def fetch_pipeline(model: ModelSource) -> Path:
    """Have a base model: its folder in diffusers layout, with a text encoder that fits the transformer."""
    from likeness.klein.load import BaseModel

    base = BaseModel(model.source, revision=model.revision, offline=False, sha256=model.sha256)
    assert base.layout, "reading the layout refuses a text encoder of another size"
    if model.sha256:
        assert base.fingerprint, "reading the fingerprint compares it with the expected sha256"
    return base.folder


def check_bytes(key: str, model: ModelSource, place: Path) -> None:
    """Compare a model's files with its expected sha256, where it has one."""
    if model.sha256 is None:
        return
    import tempfile

    from likeness.faces.weights import check_sha256

    with tempfile.TemporaryDirectory() as folder:
        check_sha256(key, model, place, Path(folder))


def commit_of(place: Path) -> str | None:
    """The hub commit that a cached snapshot is of, to be pinned as `revision`; None for other places."""
    return place.name if place.parent.name == "snapshots" else None
