"""What was edited since the last run, in words: photos, texts, settings, code, results that are gone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from likeness.code import SCRIPTS, files_of_program
from likeness.reruns.dry_run import PlannedJob
from likeness.reruns.records import Record
from likeness.store import canonical_json, sha256_of_file
from likeness.workflow import MODELS, Plan
from likeness.workflow_inputs import MISSING
from likeness.workflow_restore import BY_PRODUCTS, gone

PAGES = ("write_config", "write_curation", "write_report")
"""Rules whose settings are a subject's whole configuration, under the names that the user writes."""
KINDS = {
    "write_captions": "caption text",
    "merge_faces": "reference photo",
    "index_regularisation": "picture of the class",
    "score_files": "LoRA file",
    "train_lora": "LoRA file",
}
"""What the user's files are to the rules that read them; those of the index are told apart by their folders."""
MADE = ("results/", f"{MODELS}/")
OF_ALL_SUBJECTS = ("offline", "cpu_threads")
PROGRAM = re.compile(r"\$LIKENESS/(\w+)\.py")
MOST_NAMED = 5
LONGEST_VALUE = 80
ABSENT = object()


@dataclass(frozen=True)
class Setting:
    """One key that differs: its path, and what stood and stands there (ABSENT where nothing)."""

    path: tuple[str, ...]
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {shown(self.before)} → {shown(self.now)}"


class Changes:
    """Compares what Snakemake noted when outputs were made with what is there now."""

    def __init__(self, plan: Plan, jobs: Sequence[PlannedJob], records: Sequence[Record]) -> None:
        self.plan, self.jobs, self.records = plan, jobs, records
        self._records: defaultdict[str, list[Record]] = defaultdict(list)
        for record in records:
            self._records[record.name].append(record)

    def lines(self) -> list[str]:
        """Every change as one line, subjects first; empty where nothing was edited."""
        found = [
            *self._files(),
            *self._listings(),
            *self._captions(),
            *self._settings(),
            *self._code(),
            *self._results(),
        ]
        return list(dict.fromkeys(found))

    def _files(self) -> Iterator[str]:
        """Inputs that were there before and hold other bytes now; what is new is told by the listings."""
        for job in self.jobs:
            noted = {path for record in self._records[job.name] for path in record.inputs}
            edited = [path for path in job.files("edited", noted) if path in noted]
            for before in self._settings_before(job):
                edited += other_states(before.get("files", {}), (job.settings or {}).get("files", {}))
            for path in edited:
                yield f"{job.subject}: {self._kind_of(job.rule, job.subject, path)} {path} was edited"

    def _kind_of(self, rule: str, subject: str, path: str) -> str:
        """What a file is to the rule that reads it."""
        if path.startswith(MADE) or subject not in self.plan.subjects:
            return "file"
        if path in self.plan.tables_of(subject):
            return "pair table"
        if rule in ("index_photos", "index_pairs"):
            folders = (*self.plan.subjects[subject].photos, *self.plan.subjects[subject].pairs)
            masks = [folder.masks for folder in folders if folder.masks]
            return "mask" if any(Path(path).is_relative_to(folder) for folder in masks) else "photo"
        return KINDS.get(rule, "file")

    def _listings(self) -> Iterator[str]:
        """Files of the user that came or went, by comparing all jobs of a rule and subject at once."""
        for name in self.plan.subjects:
            for rule, listed in self.plan.user_files(name).items():
                yield from self._came_and_went(name, rule, {path for path in listed if not path.startswith(MADE)})

    def _came_and_went(self, subject: str, rule: str, listed: set[str]) -> Iterator[str]:
        """Files of a rule that are listed now and were not, or were and are not; equal bytes mean a new name."""
        records = [
            one for key, found in self._records.items() if f"{key}/".startswith(f"{rule}/{subject}/") for one in found
        ]
        if not records:
            return
        hashes = {path: sha for one in records for path, sha in one.checksums.items()}
        noted = {path for one in records for path in one.files if not path.startswith(MADE)}
        gone = {path: hashes.get(path) for path in sorted(noted - listed)}
        by_hash = {sha: path for path, sha in gone.items() if sha}
        for path in sorted(listed - noted):
            what = f"{subject}: {self._kind_of(rule, subject, path)}"
            sha = f"sha256:{sha256_of_file(Path(path))}" if by_hash and Path(path).is_file() else None
            before = by_hash.pop(sha, None) if sha else None
            if before is not None:
                del gone[before]
                yield f"{what} {before} was renamed to {path}"
            else:
                yield f"{what} {path} was added"
        yield from (f"{subject}: {self._kind_of(rule, subject, path)} {path} was removed" for path in gone)

    def with_other_settings(self) -> set[str]:
        """Names of jobs whose settings or code differ: Snakemake does not say so where an input is a reason already."""
        return {
            job.name
            for job in self.jobs
            for before in self._settings_before(job)
            if canonical_json(before) != canonical_json(job.settings)
        }

    @cached_property
    def _differing(self) -> list[tuple[PlannedJob, Setting]]:
        """Settings that differ from those of the records, by job."""
        return [
            (job, setting)
            for job in self.jobs
            for before in self._settings_before(job)
            for setting in differences(before["settings"], (job.settings or before)["settings"])
        ]

    def _settings_before(self, job: PlannedJob) -> list[dict[str, Any]]:
        noted = [record.settings for record in self._records[job.name] if record.settings]
        return noted[:1] if job.settings else []

    def _captions(self) -> Iterator[str]:
        for job in self.jobs:
            if complaint := (job.settings or {}).get("unread_edits"):
                yield f"{job.subject}: {complaint}"
        for job, setting in self._differing:
            if job.rule == "write_captions" and setting.path[0] == "edits" and len(setting.path) > 1:
                where = f"{job.subject}: captions.csv, line {setting.path[1]}"
                taken_back = setting.now is ABSENT
                yield f"{where}: the edit was taken back" if taken_back else f"{where}: {shown(setting.now)}"

    def _settings(self) -> Iterator[str]:
        """Changed keys, as they stand in the configuration where a page tells, else as the stage knows them."""
        told: set[str] = set()
        for job, setting in self._differing:
            if job.rule in PAGES and setting.path[0] == "subjects" and len(setting.path) > 2:
                told.add(setting.path[1])
                yield f"{setting.path[1]}: setting {Setting(setting.path[2:], setting.before, setting.now)}"
        for job, setting in self._differing:
            if job.rule in PAGES or setting.path[0] in ("edits", "sidecars"):
                continue
            if setting.path[0] in OF_ALL_SUBJECTS:
                yield f"setting {setting}"
            elif job.subject not in told:
                yield f"{job.subject or job.rule}: setting {setting} (of {job.rule})"

    def _code(self) -> Iterator[str]:
        """Changed code by the files that are newer than what they made, each with the rules that run it."""
        rules: defaultdict[str, set[str]] = defaultdict(set)
        for job in self.jobs:
            before = self._settings_before(job)
            if before and job.settings and before[0]["code"] != job.settings["code"]:
                for name in self._newer_code(job) or ["a backend or template"]:
                    rules[name].add(job.rule)
            if job.has("command"):
                rules["the rule itself, in rules/"].add(job.rule)
        files: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for name, users in sorted(rules.items()):
            files[tuple(sorted(users))].append(name)
        for users, names in sorted(files.items()):
            verb = "was" if len(names) == 1 else "were"
            yield f"code of {', '.join(users)}: {some_of(names)} {verb} edited"

    def _newer_code(self, job: PlannedJob) -> list[str]:
        program = PROGRAM.search(job.command)
        ended_s = max(record.ended_s for record in self._records[job.name])
        files = files_of_program(program[1]) if program else []
        return [file.relative_to(SCRIPTS.parent).as_posix() for file in files if file.stat().st_mtime > ended_s]

    def _results(self) -> Iterator[str]:
        """Outputs that are not there: of a first run, of new shards, or deleted; and files beside them that are put back."""
        for job in self.jobs:
            if job.rule in BY_PRODUCTS:
                yield from (f"{job.subject}: {path} is gone and is put back" for path in gone(job.rule, job.subject))
        missing = [path for job in self.jobs for kind in ("missing", "incomplete") for path in job.files(kind)]
        if missing:
            verb = "result is" if len(missing) == 1 else "results are"
            yield f"{len(missing)} {verb} not there (never made, unfinished, or deleted): {some_of(missing)}"


def other_states(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Files that can be no inputs, were there before and are there now, and differ."""
    return [
        path
        for path, state in before.items()
        if path in now and MISSING not in (state, now[path]) and state != now[path]
    ]


def differences(before: Any, now: Any, path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """The keys at which two JSON values differ, deepest first named; lists are compared as a whole."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key, ABSENT), now.get(key, ABSENT), (*path, str(key)))
    elif before is ABSENT or now is ABSENT or canonical_json(before) != canonical_json(now):
        yield Setting(path, before, now)


def some_of(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def shown(value: Any) -> str:
    """A value as one short piece of text."""
    if value is ABSENT:
        return "nothing"
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
