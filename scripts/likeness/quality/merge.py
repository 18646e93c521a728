"""Facts about a set of photos or pairs: light set-ups, backgrounds, identity against the others, near duplicates.

They are made from the measures of single photos alone, cost little, and are made anew in every merge.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from likeness.config.quality import QualitySettings
from likeness.quality.measure import rounded
from likeness.store import sha256_of_bytes

Row = Mapping[str, Any]
Metric = Literal["euclidean", "cityblock"]
MOST_LINKED = 4000
"""Features that are compared each with each: 64 MB of distances; 20,000 would be 1.6 GB."""
CHUNK = 1000


def merge_quality(
    rows: Sequence[Row], images: Sequence[Row], faces: Sequence[Row], settings: QualitySettings
) -> list[dict[str, Any]]:
    """Keep the subject's candidate of each photo or pair, and add what only the whole set tells.

    rows: QUALITY of all shards. images: the merged PHOTOS or PAIRS. faces: the merged FACES with its set facts.
    """
    kept = [dict(row) for row in subject_rows(rows, faces)]
    kinds = {(row["id"], row["role"], row["face"]): row["embedding_kind"] for row in faces}
    groups = {image["id"]: image["near_duplicate_group"] for image in images}
    shas = {image["id"]: image["sha256"] or "" for image in images}
    copies = {image["id"] for image in images if image["status"] != "ok"}
    names = [shas.get(row["id"], "") for row in kept]
    lights = clusters([row["light_features"] for row in kept], names, settings.light_distance, "euclidean")
    backgrounds = clusters(
        [row["background_histogram"] for row in kept], names, settings.background_distance, "cityblock"
    )
    cosines = leave_one_out_cosines(
        [None if row["id"] in copies else row["embedding"] for row in kept],
        [kinds.get((row["id"], "photo", row["face"]), kinds.get((row["id"], "target", row["face"]))) for row in kept],
    )
    ranks = near_duplicate_ranks([(groups.get(row["id"]), row["sharpness"], shas.get(row["id"], "")) for row in kept])
    for row, light, behind, cosine, rank in zip(kept, lights, backgrounds, cosines, ranks, strict=True):
        row |= {"light_cluster": light, "background_cluster": behind}
        row |= {"near_duplicate_group": groups.get(row["id"]), "near_duplicate_rank": rank}
        row |= rounded({"identity_cosine": cosine})
    return kept


def subject_rows(rows: Sequence[Row], faces: Sequence[Row]) -> list[Row]:
    """One row a photo or pair, by name: the subject's face, else the candidate most like it, else the first."""
    known = {(row["id"], row["face"]): row for row in faces if row["role"] in ("photo", "target")}

    def fitness(row: Row) -> tuple[bool, float, int]:
        fact = known.get((row["id"], row["face"]), {})
        cosine = fact.get("subject_cosine")
        return (bool(fact.get("is_subject")), -2.0 if cosine is None else cosine, -(row["face"] or 0))

    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_name[row["id"]].append(row)
    return [max(by_name[name], key=fitness) for name in sorted(by_name)]


def clusters(
    features: Sequence[Sequence[float] | None], names: Sequence[str], distance: float, metric: Metric
) -> list[int | None]:
    """Group features by average linkage cut at a distance; the largest cluster is 0, and so on.

    names: hashes of what has the features; of equal clusters the one with the smallest name comes first, so that neither
    the files' names nor their order number anything. Entries without features, or with another number of them than the
    one of the smallest name, have no cluster.
    """
    usable = sorted(
        (index for index, entry in enumerate(features) if entry is not None), key=lambda index: names[index]
    )
    length = len(features[usable[0]] or ()) if usable else 0
    usable = [index for index in usable if len(features[index] or ()) == length]
    labels: list[int | None] = [None] * len(features)
    if not usable:
        return labels
    values = np.asarray([features[index] for index in usable], np.float64)
    found = cluster_labels(values, distance, metric).tolist()
    sizes = Counter(found)
    places = {
        label: place for place, label in enumerate(sorted(sizes, key=lambda label: (-sizes[label], found.index(label))))
    }
    for index, label in zip(usable, found, strict=True):
        labels[index] = places[label]
    return labels


def cluster_labels(values_NF: NDArray[np.float64], distance: float, metric: Metric) -> NDArray[np.int64]:
    """Equal numbers for features (N, F) of one cluster, (N,).

    Linkage compares each with each. Of a large set it sees MOST_LINKED features, drawn by their content; the others
    join the cluster whose mean is nearest, and those that are far from all are clustered in the same way.
    """
    if len(values_NF) == 1:
        return np.zeros(1, np.int64)
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import cdist, pdist

    drawn = np.argsort([sha256_of_bytes(row_F.tobytes()) for row_F in values_NF], kind="stable")
    linked, rest = drawn[:MOST_LINKED], drawn[MOST_LINKED:]
    linked.sort()
    labels_N = np.zeros(len(values_NF), np.int64)
    labels_N[linked] = fcluster(linkage(pdist(values_NF[linked], metric), "average"), distance, "distance")
    if not len(rest):
        return labels_N
    names = np.unique(labels_N[linked])
    means_KF = np.stack([values_NF[linked][labels_N[linked] == name].mean(axis=0) for name in names])
    far: list[NDArray[np.int64]] = []
    for start in range(0, len(rest), CHUNK):
        block = rest[start : start + CHUNK]
        away_BK = cdist(values_NF[block], means_KF, metric)
        labels_N[block] = names[away_BK.argmin(axis=1)]
        far.append(block[away_BK.min(axis=1) > distance])
    left = np.sort(np.concatenate(far))
    if len(left):
        labels_N[left] = names.max() + 1 + cluster_labels(values_NF[left], distance, metric)
    return labels_N


def leave_one_out_cosines(
    embeddings: Sequence[Sequence[float] | None], kinds: Sequence[str | None]
) -> list[float | None]:
    """Cosine of each embedding to the mean of the others of its kind; None without an embedding or without others."""
    cosines: list[float | None] = [None] * len(embeddings)
    by_kind: dict[tuple[str | None, int], list[int]] = defaultdict(list)
    units: dict[int, NDArray[np.float64]] = {}
    for index, (embedding, kind) in enumerate(zip(embeddings, kinds, strict=True)):
        length = 0.0 if embedding is None else float(np.linalg.norm(np.asarray(embedding, np.float64)))
        if embedding is not None and length > 0 and np.isfinite(length):
            units[index] = np.asarray(embedding, np.float64) / length
            by_kind[kind, len(embedding)].append(index)
    for members in by_kind.values():
        total = np.sum([units[index] for index in members], axis=0)
        for index in members:
            others = total - units[index]
            length = float(np.linalg.norm(others))
            if len(members) > 1 and length > 1e-9:
                cosines[index] = float(units[index] @ others) / length
    return cosines


def near_duplicate_ranks(entries: Sequence[tuple[str | None, float | None, str]]) -> list[int | None]:
    """Rank within each group of near duplicates, 0 the sharpest; entries: group, sharpness, hash that breaks ties."""
    ranks: list[int | None] = [None] * len(entries)
    by_group: dict[str, list[int]] = defaultdict(list)
    for index, (group, _, _) in enumerate(entries):
        if group is not None:
            by_group[group].append(index)
    for members in by_group.values():
        ordered = sorted(members, key=lambda index: (-_or_lowest(entries[index][1]), entries[index][2]))
        for rank, index in enumerate(ordered):
            ranks[index] = rank
    return ranks


def _or_lowest(value: float | None) -> float:
    return -1.0 if value is None else value
