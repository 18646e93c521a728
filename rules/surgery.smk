# LoRAs made of finished LoRAs, which then compete like checkpoints; and what is measured of LoRAs and blocks.


rule make_surgery:
    input:
        parents=plan.surgery.parents_of_candidate,
        scores=plan.surgery.scores_of_candidate,
        steps=plan.surgery.steps_of_candidate,
        holdout=plan.holdout,
        models=plan.miniature_base,
    output:
        "results/{subject}/surgery/{name}.json",
    log:
        "results/.logs/make_surgery/{subject}/{name}.log",
    benchmark:
        "results/.benchmarks/make_surgery/{subject}/{name}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        stage=plan.surgery.make_surgery,
        parents=plan.surgery.flags_of_candidate,
        store=plan.store,
    message:
        "Make {wildcards.name} of {wildcards.subject} by surgery"
    shell:
        'python "$LIKENESS/make_surgery.py" '
        "--settings {params.stage:q} "
        "{params.parents} --store {params.store:q} --output {output} "
        "> {log} 2>&1"


rule ablate_lora:
    input:
        parents=plan.surgery.parents_of_ablation,
        scores=plan.surgery.scores_of_ablation,
        steps=plan.surgery.steps_of_ablation,
        base="results/{subject}/evaluation/base/scores.parquet",
        holdout=plan.holdout,
        manifests=plan.manifests,
        models=plan.miniature_judge,
    output:
        "results/{subject}/ablation/{name}.parquet",
    log:
        "results/.logs/ablate_lora/{subject}/{name}.log",
    benchmark:
        "results/.benchmarks/ablate_lora/{subject}/{name}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 480 * attempt,
        gpu=plan.project.gpus_per_job,
    params:
        stage=plan.surgery.ablate_lora,
        parents=plan.surgery.flags_of_ablation,
        store=plan.store,
        images=plan.index_of_subject,
    message:
        "Ablate {wildcards.name} of {wildcards.subject} block by block"
    shell:
        'python "$LIKENESS/ablate_lora.py" '
        "--settings {params.stage:q} --subject {wildcards.subject} "
        "{params.parents} "
        "--holdout {input.holdout} --manifests {input.manifests} --images {params.images} --store {params.store:q} "
        "--base results/{wildcards.subject}/evaluation/base --output {output} "
        "2>&1 | tee {log}"


rule measure_crosstalk:
    input:
        parents=plan.surgery.parents_of_crosstalk,
        scores=plan.surgery.scores_of_crosstalk,
        steps=plan.surgery.steps_of_crosstalk,
        bases=plan.surgery.bases_of_crosstalk,
        holdouts=plan.surgery.holdouts_of_crosstalk,
        manifests=plan.manifests,
        other_manifests=plan.surgery.other_manifests,
        models=plan.surgery.judges_of_crosstalk,
    output:
        losses="results/{subject}/crosstalk/{name}/losses.parquet",
        overlaps="results/{subject}/crosstalk/{name}/overlaps.parquet",
    log:
        "results/.logs/measure_crosstalk/{subject}/{name}.log",
    benchmark:
        "results/.benchmarks/measure_crosstalk/{subject}/{name}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
        gpu=plan.project.gpus_per_job,
    params:
        stage=plan.surgery.measure_crosstalk,
        parents=plan.surgery.flags_of_crosstalk,
        store=plan.store,
        subjects=plan.surgery.subjects_of_crosstalk,
        images=plan.surgery.images_of_crosstalk,
    message:
        "Measure crosstalk {wildcards.name} of {wildcards.subject}"
    shell:
        'python "$LIKENESS/measure_crosstalk.py" '
        "--settings {params.stage:q} --subjects {params.subjects} "
        "{params.parents} "
        "--bases {input.bases} --holdouts {input.holdouts} --images {params.images} --store {params.store:q} "
        "--manifests {input.manifests} --other-manifests {input.other_manifests} "
        "--losses {output.losses} --overlaps {output.overlaps} "
        "2>&1 | tee {log}"


rule probe_blocks:
    input:
        models=plan.miniature_base,
    output:
        "results/{subject}/probe/{name}.parquet",
    log:
        "results/.logs/probe_blocks/{subject}/{name}.log",
    benchmark:
        "results/.benchmarks/probe_blocks/{subject}/{name}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
        gpu=plan.project.gpus_per_job,
    params:
        stage=plan.surgery.probe_blocks,
        store=plan.store,
    message:
        "Probe {wildcards.name}: which blocks of the base model of {wildcards.subject} take what from the prompt"
    shell:
        'python "$LIKENESS/probe_blocks.py" '
        "--settings {params.stage:q} --subject {wildcards.subject} --store {params.store:q} --output {output} "
        "2>&1 | tee {log}"
