"""Say before a run what was edited, what will start, how long it took before, and what the dry run lists in vain.

Snakemake plans jobs behind the phase decision as soon as the decision itself must run, since it cannot know the new
manifests yet. Once they are written, whatever reads an unchanged manifest is taken off the plan. Such jobs are told
apart here: they start by nothing but a manifest that may turn out the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatch

from likeness.reruns.changes import Changes
from likeness.reruns.dry_run import PlannedJob, dry_run, job_of_output
from likeness.reruns.records import read_records, seconds_of
from likeness.workflow import Plan

MANIFESTS = "results/*/phases/*.parquet"
DECISIONS = "results/*/phases/decisions.parquet"
SETTLES = "refine_phase"
"""The rule whose manifests are no checkpoint's: where it starts for sure, so do their readers."""


def explain_run(plan: Plan, targets: Sequence[str] = ()) -> str:
    """The whole text for the working directory; raises UserError where Snakemake cannot plan."""
    jobs, records = dry_run(targets, plan.subjects), read_records()
    if not jobs:
        return "Nothing to do: every result is newer than, or equal to, what it is made from."
    makers = job_of_output(jobs, {record.output: record.name for record in records})
    changes = Changes(plan, jobs, records)
    certain = certain_jobs(jobs, makers, changes.with_other_settings())
    if_changed = [job for job in jobs if job not in certain]
    lines = ["What changed"]
    lines += [f"  {line}" for line in changes.lines()] or ["  nothing that Snakemake can name"]
    lines += ["", f"What will start: {told(certain)}", *listed(certain)]
    if if_changed:
        lines += ["", f"Only if the selection changes: {told(if_changed)}", *listed(if_changed)]
        lines += [
            "  `snakemake -n` lists these as well, since it cannot know before the decision whether a manifest or the",
            "  held-out set changes. Where it does not, they are taken off the plan and nothing is trained or drawn.",
        ]
    lines += [
        "",
        "Times are those of the last run of each job, one after the other; what the store holds is not computed again.",
        "No time is known of jobs that never ran, or that took everything from the store when they ran last.",
    ]
    return "\n".join(lines)


def certain_jobs(
    jobs: Sequence[PlannedJob], makers: Mapping[str, PlannedJob], changed: Collection[str] = ()
) -> list[PlannedJob]:
    """Jobs that start whatever the decision says: by themselves, or after one of these other than through a manifest.

    `changed` names jobs whose settings or code differ.
    """
    certain = {job.name: job for job in jobs if job.starts_by_itself or job.name in changed}
    waiting = [job for job in jobs if job.name not in certain]
    while True:
        found = [job for job in waiting if any(follows(path, makers, certain) for path in job.files("renewed"))]
        if not found:
            return [job for job in jobs if job.name in certain]
        certain |= {job.name: job for job in found}
        waiting = [job for job in waiting if job.name not in certain]


def follows(path: str, makers: Mapping[str, PlannedJob], certain: Mapping[str, PlannedJob]) -> bool:
    """Whether a renewed file starts its reader for sure."""
    if is_manifest(path) and not (path in makers and makers[path].rule == SETTLES):
        return False
    return path not in makers or makers[path].name in certain


def is_manifest(path: str) -> bool:
    """Whether a file is a phase's manifest or the holdout, whose readers wait for the decision."""
    return fnmatch(path, MANIFESTS) and not fnmatch(path, DECISIONS)


def told(jobs: Sequence[PlannedJob]) -> str:
    """`9 jobs, about 2 minutes by their last runs; 1 has not run before (train_lora)`."""
    known = [seconds for job in jobs if (seconds := seconds_of(job.name)) is not None]
    new = Counter(job.rule for job in jobs if seconds_of(job.name) is None)
    parts = [f"{len(jobs)} job{'s' * (len(jobs) != 1)}"]
    if known:
        parts.append(f"about {minutes(sum(known))} by their last runs")
    text = ", ".join(parts)
    if new:
        text += f"; no time is known of {new.total()} ({', '.join(sorted(new))})"
    return text


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 600 else f"{seconds / 60:.0f} minutes"


def listed(jobs: Sequence[PlannedJob]) -> list[str]:
    """One line a subject and rule, with what the job calls itself."""
    groups: defaultdict[tuple[str, str], list[PlannedJob]] = defaultdict(list)
    for job in jobs:
        groups[job.subject, job.rule].append(job)
    width = max(len(rule) for _, rule in groups)
    lines = []
    for (_, rule), members in groups.items():
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        lines.append(f"  {rule:<{width}}  {members[0].message}{more}")
    return lines


def explain_here(targets: Sequence[str] = ()) -> str:
    """Explain the working directory's next run."""
    return explain_run(Plan.load([], {}), targets)
