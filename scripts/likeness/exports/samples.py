"""The samples of a phase with the files that other trainers need: names, images by role, mask, caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likeness.errors import UserError
from likeness.photos.images import ImageRef, images_of, read_image_rows
from likeness.tables import MANIFEST, read_rows

PHOTO, SOURCE, TARGET = "photo", "source", "target"


@dataclass(frozen=True)
class Sample:
    """One sample: images by role in the order source, references, target (or photo alone)."""

    sample_id: str
    name: str
    images: Mapping[str, ImageRef]
    mask_sha256: str | None
    caption: str
    repeats: int

    @property
    def learned(self) -> ImageRef:
        """The image that is learned: the photo, or the pair's target."""
        return self.images.get(TARGET) or self.images[PHOTO]


def read_samples(manifest_path: Path, images_path: Path) -> list[Sample]:
    """Find the files of every manifest row in the photos or pairs table, and name samples after them.

    Raises UserError when the table no longer holds a sample's images.
    """
    by_content: dict[tuple[str, ...], dict[str, ImageRef]] = {}
    for row in read_image_rows(images_path):
        if row["sha256"] is not None and row["status"] in ("ok", "duplicate"):
            roles = {image.role: image for image in images_of(row)}
            by_content.setdefault(content_of(roles), roles)
    seen: Counter[str] = Counter()
    samples: list[Sample] = []
    for row in read_rows(manifest_path, MANIFEST):
        roles = by_content.get((row["image_sha256"], *(row["reference_sha256s"] or ())))
        if roles is None:
            raise UserError(
                f"{images_path}: no row has the images of sample {row['sample_id'][:12]}. Run again, so that both are of one run."
            )
        samples.append(sample_of(row, roles, seen))
    return samples


def content_of(roles: Mapping[str, ImageRef]) -> tuple[str, ...]:
    """Hashes by which a manifest row names its images: the learned one, then the references in order."""
    learned = roles.get(TARGET) or roles[PHOTO]
    return (learned.sha256, *(image.sha256 for role, image in roles.items() if role not in (TARGET, PHOTO)))


def sample_of(row: Mapping[str, Any], roles: Mapping[str, ImageRef], seen: Counter[str]) -> Sample:
    """One sample; equal names (the same image twice) get a number, which no name of a photo can end in."""
    name = next(iter(roles.values())).id
    seen[name] += 1
    if seen[name] > 1:
        name = f"{name}--{seen[name]}"
    return Sample(row["sample_id"], name, roles, row["mask_sha256"], " ".join(row["caption"].split()), row["repeats"])


def roles_of(samples: Sequence[Sample]) -> list[str]:
    """Roles that the samples have, in order; raises UserError when they differ among pairs.

    Trainers that join folders by file name need every role of every sample.
    """
    roles = list(samples[0].images)
    for sample in samples:
        if list(sample.images) != roles:
            raise UserError(
                f"{sample.name}: has the roles {', '.join(sample.images)}, but {samples[0].name} has {', '.join(roles)}. "
                "This trainer needs the same roles in every pair: export phases apart, or complete the pairs."
            )
    return roles
