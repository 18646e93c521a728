# One checkpoint job a subject writes the manifests of all its phases: what they leave out starts nothing behind them. Where a
# phase asks for the losses of a training, it writes candidates, and an ordinary rule settles them after that training.

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
            "> {log} 2>&1 "
            f"&& sed -n 's/^warning: /warning: {subject}: /p' "
            "{log} >&2"


rule refine_phase:
    input:
        candidates=plan.candidates,
        previous=plan.manifest_before,
        losses=plan.losses_to_read,
    output:
        manifest="results/{subject}/phases/{phase}.parquet",
        refined="results/{subject}/phases/refined/{phase}.parquet",
    log:
        "results/.logs/refine_phase/{subject}/{phase}.log",
    benchmark:
        "results/.benchmarks/refine_phase/{subject}/{phase}.tsv"
    wildcard_constraints:
        phase=plan.refined_phase,
    conda:
        "../envs/curate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        stage=plan.refine_phase,
        losses=plan.losses_flag,
    message:
        "Settle phase {wildcards.phase} of {wildcards.subject} by the losses before it"
    shell:
        'python "$LIKENESS/refine_phase.py" '
        "--settings {params.stage:q} "
        "--phase {wildcards.phase} --candidates {input.candidates} --previous {input.previous} {params.losses} "
        "--manifest {output.manifest} --refined {output.refined} "
        "> {log} 2>&1"
