# One checkpoint job a subject writes the manifests of all its phases: what they leave out starts nothing behind them.

for subject in plan.subjects:

    checkpoint:
        name:
            checkpoint_name(subject)
        input:
            images=f"results/{subject}/{plan.kind(subject)}.parquet",
            faces=f"results/{subject}/faces.parquet",
            masks=f"results/{subject}/masks.parquet",
            quality=f"results/{subject}/quality.parquet",
            captions=f"results/{subject}/captions.parquet",
        output:
            **plan.decision_outputs(subject),
        log:
            f"results/.logs/decide_phases/{subject}.log",
        benchmark:
            f"results/.benchmarks/decide_phases/{subject}.tsv"
        conda:
            "../envs/curate.yaml"
        threads: 1
        resources:
            mem_mb=lambda wildcards, attempt: 1000 * attempt,
            runtime=lambda wildcards, attempt: 30 * attempt,
        params:
            stage=plan.decide_phases(subject),
            folder=f"results/{subject}/phases",
        message:
            f"Decide what each phase of {subject} trains on"
        shell:
            'python "$LIKENESS/decide_phases.py" '
            "--settings {params.stage:q} "
            "--images {input.images} --faces {input.faces} --masks {input.masks} "
            "--quality {input.quality} --captions {input.captions} "
            "--output-folder {params.folder} "
            "> {log} 2>&1"
