# From folders of photos, or of before/after pairs, to chosen FLUX.2 [klein] LoRAs. What depends on what is in rules/.
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")

# A shim may include this file, and --directory may move the working directory: the library lies beside this file.
sys.path.insert(0, str(Path(str(workflow.current_basedir)) / "scripts"))

from likeness.disk import closed_disk
from likeness.workflow import Plan, use_this_interpreter
from likeness.workflow_phases import checkpoint_name

use_this_interpreter()
plan = Plan.load(workflow.config_settings.configfiles, workflow.config_settings.config)
plan.checkpoints = checkpoints
for warning in plan.warnings:
    print(f"warning: {warning}", file=sys.stderr)


# Before the first job, and after one failed: its own log may lie on the disk that is full.
onstart:
    if complaint := closed_disk(Path("results")):
        raise WorkflowError(f"error: {complaint}")
    plan.remember_recognisers()


onerror:
    if complaint := closed_disk(Path("results")):
        print(f"error: {complaint}", file=sys.stderr)


wildcard_constraints:
    subject="[a-z0-9-]+",
    shard=r"\d+",
    phase="(?!files/)[a-z0-9-]+",
    variant="(?!base/|report-half)[a-z0-9-]+",
    trainer="[a-z0-9-]+",
    name="[a-z0-9-]+",


rule all:
    default_target: True
    input:
        "results/report/index.html",
        [file for subject in plan.subjects for file in plan.products(subject)],


include: "rules/models.smk"
include: "rules/photos.smk"
include: "rules/faces.smk"
include: "rules/masks.smk"
include: "rules/quality.smk"
include: "rules/captions.smk"
include: "rules/phases.smk"
include: "rules/exports.smk"
include: "rules/training.smk"
include: "rules/surgery.smk"
include: "rules/evaluation.smk"
include: "rules/publish.smk"
include: "rules/report.smk"
include: "rules/miniature.smk"
