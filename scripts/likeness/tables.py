"""Every table that Likeness writes: columns, types, units, meaning; and how tables are written and read.

A table is written sorted, through a temporary file and a rename, and is byte-identical for identical content. Shard
tables and merged tables share a schema: columns that are facts about the whole set are null in shards and filled by the
merge. Images are named by (id, role): role is `photo` for a photo, `source`, `reference`, `reference2` … or `target`
for a pair.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from likeness.errors import OldTableError, UserError
from likeness.store import canonical_json, write_atomically


class PandasHidden:
    """Hides pandas from imports inside a `with`, unless it is there already."""

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)  # pyright: ignore[reportArgumentType]

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)  # pyright: ignore[reportArgumentType]

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


# For the first list that it converts Arrow looks whether pandas is there, which takes each job as long as all its other
# imports. It looks once, and again where pandas is really asked for (to_pandas).
with PandasHidden():
    pa.array([0])

TEXT, TEXTS, FLOAT, FLOATS, DOUBLES, WHOLE, YES = (
    pa.string(),
    pa.list_(pa.string()),
    pa.float64(),
    pa.list_(pa.float32()),
    pa.list_(pa.float64()),
    pa.int64(),
    pa.bool_(),
)


@dataclass(frozen=True)
class Column:
    """One column: its name, Arrow type and meaning (with unit and range)."""

    name: str
    type: pa.DataType
    meaning: str


@dataclass(frozen=True)
class Table:
    """One kind of table: its columns in order and the columns by which rows are sorted (none: rows keep their order)."""

    name: str
    columns: tuple[Column, ...]
    sort_by: tuple[str, ...]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(column.name, column.type) for column in self.columns])


def columns(*rows: tuple[str, pa.DataType, str]) -> tuple[Column, ...]:
    return tuple(Column(*row) for row in rows)


STATUS = (
    ("status", TEXT, "ok, or a short word for what is wrong"),
    ("reason", TEXT, "one sentence for people; empty when ok"),
)

PHOTOS = Table(
    "photos",
    columns(
        ("id", TEXT, "the photo's name: its relative path, slugged"),
        ("path", TEXT, "path of the file as configured, relative to the working directory unless given absolute"),
        ("repeats", WHOLE, "how often it is seen in one epoch"),
        ("mask_path", TEXT, "the user's own mask, or null"),
        ("mask_sha256", TEXT, "hash of that mask's bytes, or null"),
        ("sha256", TEXT, "hash of the file's bytes"),
        ("size_bytes", WHOLE, "size of the file"),
        ("width_px", WHOLE, "width after EXIF rotation"),
        ("height_px", WHOLE, "height after EXIF rotation"),
        ("format", TEXT, "format found in the bytes, lower case"),
        ("phash", TEXT, "64-bit perceptual hash, hex"),
        ("phash_mirror", TEXT, "perceptual hash of the mirror image, hex"),
        ("near_duplicate_group", TEXT, "set fact: smallest name of the group of near duplicates, or null"),
        *STATUS,
    ),
    ("id",),
)

PAIRS = Table(
    "pairs",
    columns(
        ("id", TEXT, "the pair's name"),
        ("source_path", TEXT, "the image before the edit"),
        ("target_path", TEXT, "the image after the edit"),
        ("reference_paths", TEXTS, "further references, in order; after the source"),
        ("mask_path", TEXT, "the user's own mask of the target, or null"),
        ("mask_sha256", TEXT, "hash of that mask's bytes, or null"),
        ("caption", TEXT, "instruction from the pair table, or null"),
        ("repeats", WHOLE, "how often it is seen in one epoch"),
        ("sha256", TEXT, "hash of the target's bytes"),
        ("source_sha256", TEXT, "hash of the source's bytes"),
        ("reference_sha256s", TEXTS, "hashes of the further references' bytes"),
        ("width_px", WHOLE, "width of the target after EXIF rotation"),
        ("height_px", WHOLE, "height of the target after EXIF rotation"),
        ("source_width_px", WHOLE, "width of the source after EXIF rotation"),
        ("source_height_px", WHOLE, "height of the source after EXIF rotation"),
        ("phash", TEXT, "64-bit perceptual hash of the target, hex"),
        ("phash_mirror", TEXT, "perceptual hash of the target's mirror image, hex"),
        ("source_phash", TEXT, "64-bit perceptual hash of the source, hex"),
        ("near_duplicate_group", TEXT, "set fact: smallest name of the group of near duplicates, or null"),
        *STATUS,
    ),
    ("id",),
)

FACES = Table(
    "faces",
    columns(
        ("id", TEXT, "name of the photo or pair"),
        ("role", TEXT, "photo, source, reference, reference2 … or target"),
        ("face", WHOLE, "candidate: 0 the largest and most central; null where none was found"),
        ("x0", FLOAT, "left of the box, px of the upright photo"),
        ("y0", FLOAT, "top of the box, px"),
        ("x1", FLOAT, "right of the box, px"),
        ("y1", FLOAT, "bottom of the box, px"),
        ("landmarks", FLOATS, "five points x, y, px: eyes, nose, mouth corners (image left first); null if unknown"),
        ("score", FLOAT, "detector's confidence, 0..1"),
        ("yaw_deg", FLOAT, "head turn, negative to the viewer's left; null if unknown"),
        ("pitch_deg", FLOAT, "head nod; null if unknown"),
        ("roll_deg", FLOAT, "head tilt; null if unknown"),
        ("embedding", FLOATS, "unit-length embedding, or null"),
        ("embedding_kind", TEXT, "which recogniser or descriptor made it"),
        ("image_width_px", WHOLE, "width of the upright photo"),
        ("image_height_px", WHOLE, "height of the upright photo"),
        ("crop_x0", FLOAT, "left of the padded square crop, px; may lie outside the photo"),
        ("crop_y0", FLOAT, "top of the crop, px"),
        ("crop_side_px", FLOAT, "side of the crop in px of the photo (real pixels)"),
        ("crop_angle_deg", FLOAT, "rotation of the crop that levels the eyes"),
        ("crop_border", FLOAT, "share of the crop that lies outside the photo and was padded"),
        ("crop_sha256", TEXT, "stored PNG of the crop, or null"),
        ("is_subject", YES, "set fact: whether this candidate is the subject's face"),
        ("subject_cosine", FLOAT, "set fact: cosine to the subject's reference or medoid"),
        *STATUS,
    ),
    ("id", "role", "face"),
)

MASKS = Table(
    "masks",
    columns(
        ("id", TEXT, "name of the photo or pair"),
        ("role", TEXT, "photo, source, reference … or target"),
        ("face", WHOLE, "candidate face"),
        ("kind", TEXT, "face, head or person"),
        ("mask_sha256", TEXT, "stored 8-bit PNG on the photo's grid, 255 inside"),
        ("crop_mask_sha256", TEXT, "stored 8-bit PNG on the crop's grid"),
        ("area_fraction", FLOAT, "share of the photo inside"),
        ("backend", TEXT, "what made it"),
        *STATUS,
    ),
    ("id", "role", "face", "kind"),
)

QUALITY = Table(
    "quality",
    columns(
        ("id", TEXT, "name of the photo or pair"),
        ("face", WHOLE, "candidate face (of the photo, or of the pair's target); null where none was found"),
        ("sharpness", FLOAT, "variance of the Laplacian on the scaled face crop"),
        ("brightness", FLOAT, "mean lightness L* of the face, 0..100"),
        ("clipped", FLOAT, "share of black or burnt-out face pixels, 0..1"),
        ("face_px", FLOAT, "face height, px of the photo"),
        ("face_fraction", FLOAT, "face height over photo height"),
        ("framing", TEXT, "close, half or full; null without a face"),
        ("framing_by", TEXT, "body keypoints or face ratio"),
        ("pose", TEXT, "front, left or right; null if unknown"),
        ("yaw_deg", FLOAT, "head turn, degrees"),
        ("pitch_deg", FLOAT, "head nod, degrees"),
        ("roll_deg", FLOAT, "head tilt, degrees"),
        ("light", TEXT, "even, left, right or dim"),
        ("light_features", FLOATS, "for light clusters: L*, left-right and top-bottom difference of L*, a*, b*"),
        ("background", TEXT, "nearest named background colour, or null"),
        ("background_histogram", FLOATS, "colour histogram outside the person mask, sums to 1"),
        ("embedding", FLOATS, "unit-length embedding of the face, or null"),
        ("light_cluster", WHOLE, "set fact: which lighting set-up, from 0"),
        ("background_cluster", WHOLE, "set fact: which background, from 0"),
        ("identity_cosine", FLOAT, "set fact: cosine to the mean of the others (leave one out)"),
        ("near_duplicate_group", TEXT, "set fact: smallest name of the group, or null"),
        ("near_duplicate_rank", WHOLE, "set fact: 0 for the sharpest of its group"),
        ("background_ssim", FLOAT, "pair: structural similarity outside the grown head mask"),
        ("shift_px", FLOAT, "pair: sub-pixel shift between source and target"),
        ("skin_delta_e", FLOAT, "pair: skin colour difference, CIEDE2000"),
        ("hair_delta_e", FLOAT, "pair: hair colour difference, CIEDE2000"),
        ("hair_area_ratio", FLOAT, "pair: larger hair area over smaller"),
        ("pose_delta_deg", FLOAT, "pair: pose difference"),
        ("pair_identity", FLOAT, "pair: identity cosine between source (or face reference) and target"),
        ("change", FLOAT, "pair: mean absolute change, 0..1"),
        *STATUS,
    ),
    ("id", "face"),
)

CAPTIONS = Table(
    "captions",
    columns(
        ("id", TEXT, "name of the photo or pair"),
        ("caption", TEXT, "the line that training reads; empty when status is not ok"),
        ("caption_by", TEXT, "sidecar, captions.csv, table, instruction, or the backend's name"),
        ("caption_raw", TEXT, "the backend's own caption before repairs; null when a hand wrote it"),
        ("fields", TEXT, "the backend's fields as JSON, or null"),
        ("violations", TEXTS, "lint rules broken by the raw caption"),
        ("repairs", TEXTS, "clauses that were deleted"),
        ("asked", WHOLE, "how often the model was asked"),
        ("model", TEXT, "model that wrote it, or null"),
        ("prompt_sha256", TEXT, "hash of the prompt that was sent, or null"),
        ("tokens_in", WHOLE, "prompt tokens, or null"),
        ("tokens_out", WHOLE, "answer tokens, or null"),
        ("cost_usd", FLOAT, "cost by the configured prices, or null"),
        *STATUS,
    ),
    ("id",),
)

MANIFEST = Table(
    "manifest",
    columns(
        ("sample_id", TEXT, "hash of image, mask, references and caption"),
        ("image_sha256", TEXT, "bytes of the photo, or of the pair's target"),
        ("mask_sha256", TEXT, "stored mask that weighs the loss, or null"),
        ("reference_sha256s", TEXTS, "bytes of the references in order: the source first; empty for photos"),
        ("caption", TEXT, "the line that training reads"),
        ("repeats", WHOLE, "how often it is seen in one epoch"),
    ),
    (),
)

CANDIDATES = Table(
    "candidates", (*MANIFEST.columns, Column("always", YES, "kept by hand, whatever the losses say")), ()
)

REFINED = Table(
    "refined",
    columns(
        ("sample_id", TEXT, "a candidate of a phase whose samples are settled after a training"),
        ("train_loss", FLOAT, "its loss over the middle sample's at the same noise levels; null where it has none"),
        ("train_loss_percentile", FLOAT, "place among that training's samples: near 0 learned best, near 100 worst"),
        ("kept", YES, "whether the phase trains on it"),
        ("rule", TEXT, "kept, always, earlier_phase, where or top"),
        ("reason", TEXT, "one sentence for people"),
    ),
    ("sample_id",),
)

HOLDOUT = Table("holdout", (*MANIFEST.columns, Column("use", TEXT, "held_out, or reference (identity only)")), ())

SAMPLE_FACES = Table(
    "sample_faces",
    columns(
        ("image_sha256", TEXT, "bytes of a sample's photo, or of its pair's target, that shows the subject's face"),
        ("box", FLOATS, "left, top, right and bottom of the face, px of the upright photo"),
        ("landmarks", FLOATS, "five points x, y, px, as the faces table has them; null if unknown"),
    ),
    ("image_sha256",),
)

CANDIDATE = "candidate"
"""The rule of a sample that is kept so far, in a phase that the losses of a training settle."""

DECISIONS = Table(
    "decisions",
    columns(
        ("phase", TEXT, "name of the phase"),
        ("id", TEXT, "name of the photo or pair"),
        ("sample_id", TEXT, "its sample id, or null where it has none"),
        ("kept", YES, "whether this phase trains on it"),
        (
            "rule",
            TEXT,
            "what decided: status, no_face, identity, near_duplicate, sharpness …, where, top, always, never, held_out …; kept; "
            "candidate: kept so far, the losses of a training decide (phases/refined)",
        ),
        ("value", FLOAT, "measured value, or null"),
        ("threshold", FLOAT, "limit it was held against, or null"),
        ("reason", TEXT, "one sentence for people"),
        ("position", WHOLE, "place in the phase's order, from 0; null when dropped"),
        ("group", TEXT, "defect or provenance column of a pair table, or null"),
    ),
    ("phase", "id"),
)

ENCODED = Table(
    "encoded",
    columns(
        ("sample_id", TEXT, "the sample"),
        ("resolution_px", WHOLE, "training resolution that the bucket belongs to"),
        ("width_px", WHOLE, "bucket width"),
        ("height_px", WHOLE, "bucket height"),
        ("latents_sha256", TEXT, "stored latents of the target (safetensors)"),
        ("reference_latents_sha256s", TEXTS, "stored latents of the references, in order"),
        ("embedding_sha256", TEXT, "stored text embedding of the caption"),
        ("weight_sha256", TEXT, "stored loss weights on the token grid, or null"),
        ("empty_embedding_sha256", TEXT, "stored text embedding of the empty caption"),
        ("repeats", WHOLE, "how often it is seen in one epoch"),
        (
            "class_embedding_sha256",
            TEXT,
            "stored embedding of the caption with the class for the trigger, where it is read",
        ),
        (
            "landmarks",
            DOUBLES,
            "the subject's five points x, y in px of the bucket, where a loss reads faces and there is one",
        ),
        ("face_box", DOUBLES, "left, top, right, bottom of the subject's face in px of the bucket, likewise"),
        ("prompts", TEXTS, "prompts of the losses' own, of all variants; alike in all rows"),
        ("prompt_embedding_sha256s", TEXTS, "stored embeddings of these prompts, in their order"),
        ("held_out", YES, "kept from training; its loss is measured at every checkpoint"),
        ("mirrored", YES, "a row of its own for the mirrored picture, where some training shows it"),
        ("regularisation", YES, "a picture of the class, for losses.prior_preservation; in no manifest"),
        (
            "source_latents_sha256",
            TEXT,
            "stored latents of a pair's source in the target's bucket, where a loss reads them",
        ),
    ),
    (),
)

LOSSES = {
    "velocity": "squared error of the velocity",
    "output_preservation": "squared change of the answer to the class",
    "prior_preservation": "squared error of the velocity on pictures of the class; 0 in steps without any",
    "masked_prior": "squared change of the answer outside of the mask",
    "slider": "squared distance to the direction between two prompts",
    "image_slider": "squared errors of the velocity at both strengths, on the target and on the source",
    "identity": "one minus the cosine of the implied face to the subject's",
    "lpips": "LPIPS distance of the implied picture to the sample's",
    "contrastive": "cross entropy of telling the sample's picture from its partner's",
}
"""Every loss that a training can have, in the order of its settings."""

LOG = Table(
    "log",
    columns(
        ("step", WHOLE, "completed optimizer steps"),
        ("loss", FLOAT, "the optimised loss of the step, over all its micro-batches"),
        ("learning_rate", FLOAT, "learning rate of the step"),
        ("grad_norm", FLOAT, "gradient norm before clipping"),
        ("sigma_mean", FLOAT, "mean noise level of the step, 0..1"),
        ("held_out_loss", FLOAT, "loss of the held-out samples on a fixed grid of noise; null but at checkpoints"),
        *[(f"loss_{name}", FLOAT, f"{meaning}, before its weight; null when off") for name, meaning in LOSSES.items()],
        ("samples", TEXTS, "sample ids of the step, in order"),
        (
            "sample_losses",
            DOUBLES,
            "the optimised loss of each of these samples; `loss` is the mean of the subject's, plus that of the class's",
        ),
        ("sample_sigmas", DOUBLES, "the noise level of each of these samples, 0..1"),
        (
            "grad_ratios",
            DOUBLES,
            "gradient norm of each loss that is on, in the order above, over the first one's; every 25th step where more "
            "than two auxiliary losses are on, else empty",
        ),
    ),
    ("step",),
)

SCORES = Table(
    "scores",
    columns(
        ("subject", TEXT, "name of the subject"),
        ("variant", TEXT, "name of the variant; base for the bare model"),
        ("phase", TEXT, "name of the phase; empty for base"),
        ("step", WHOLE, "optimizer step of the checkpoint; 0 for base"),
        ("lora_sha256", TEXT, "hash of the checkpoint; empty for base"),
        ("base_model", TEXT, "fingerprint of the base model"),
        ("lora_scale", FLOAT, "strength at which the LoRA was used"),
        ("prompt_id", TEXT, "name of the prompt, or of the held-out pair"),
        ("source_id", TEXT, "edit: name of the source; else empty"),
        ("prompt", TEXT, "the prompt as it was encoded"),
        ("seed", WHOLE, "seed of the initial noise"),
        ("split", TEXT, "select or report"),
        ("image", TEXT, "sha256 of the stored image"),
        ("metric", TEXT, "name of the metric"),
        ("value", FLOAT, "the measured value; null when it could not be measured"),
        ("status", TEXT, "ok, no_face, or no_weights: … and the like"),
        ("metric_version", TEXT, "version of the metric, with the recogniser or model it used"),
    ),
    ("subject", "variant", "phase", "step", "base_model", "lora_scale", "prompt_id", "seed", "metric"),
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        PHOTOS,
        PAIRS,
        FACES,
        MASKS,
        QUALITY,
        CAPTIONS,
        MANIFEST,
        CANDIDATES,
        REFINED,
        HOLDOUT,
        SAMPLE_FACES,
        DECISIONS,
        ENCODED,
        LOG,
        SCORES,
    )
}


def table_of(kind: Table, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Make a sorted Arrow table; a row may leave out nullable columns but bring no unknown one."""
    listed = sorted(rows, key=lambda row: [nulls_last(row.get(name)) for name in kind.sort_by])
    unknown = set[str]().union(*listed) - {column.name for column in kind.columns}
    assert not unknown, f"{kind.name}: unknown columns {sorted(unknown)}"
    arrays = [pa.array([row.get(column.name) for row in listed], type=column.type) for column in kind.columns]
    return pa.Table.from_arrays(arrays, schema=kind.schema)


def nulls_last(value: Any) -> tuple[bool, Any]:
    """A key that sorts as Arrow does, whose own sort of so few rows takes less than the import that it needs."""
    return value is None, value


def sort_table(table: pa.Table, sort_by: Sequence[str]) -> pa.Table:
    if not sort_by or table.num_rows == 0:
        return table.combine_chunks()
    return table.sort_by([(name, "ascending") for name in sort_by]).combine_chunks()


def write_table(
    path: Path, kind: Table, rows: Iterable[Mapping[str, Any]] | pa.Table, about: Mapping[str, Any] | None = None
) -> None:
    """Write a table atomically; `about` (stage version, settings slice, fingerprints) goes into the Parquet metadata."""
    if isinstance(rows, pa.Table):
        given: Any = rows
        table = sort_table(given.select(kind.schema.names).cast(kind.schema), kind.sort_by)
    else:
        table = table_of(kind, cast(Iterable[Mapping[str, Any]], rows))
    metadata = {b"likeness": canonical_json(dict(about)).encode()} if about else None
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata), buffer, compression="zstd", write_statistics=False, store_schema=True
    )
    write_atomically(path, buffer.getvalue())


def read_table(
    path: Path, kind: Table | None = None, columns: Sequence[str] | None = None, as_codes: Sequence[str] = ()
) -> pa.Table:
    """Read a table, or some of its columns; with `kind`, check that its columns are the documented ones.

    `as_codes` are text columns that are left as the file has them: a dictionary of the texts and a code a row.
    """
    if not path.exists():
        raise UserError(f"{path}: the table is missing. Run snakemake for the stage that writes it.")
    file = pq.ParquetFile(path, read_dictionary=list(as_codes))
    found = file.schema_arrow.names
    if kind is not None and found != kind.schema.names:
        raise OldTableError(
            f"{path}: no table `{kind.name}` of this version. Found columns {found}. Delete it and run again."
        )
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


def read_rows(path: Path, kind: Table | None = None) -> list[dict[str, Any]]:
    """Read a table as a list of dictionaries, for small tables and plain loops."""
    return read_table(path, kind).to_pylist()


def merge_tables(paths: Sequence[Path], kind: Table) -> pa.Table:
    """Join shard tables into one sorted table."""
    tables = [read_table(path, kind).replace_schema_metadata(None) for path in sorted(paths)]
    return sort_table(pa.concat_tables(tables) if tables else table_of(kind, []), kind.sort_by)
