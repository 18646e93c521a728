# Images and scores of every checkpoint; the finalists again on the report half; then the choice.


rule score_base:
    input:
        holdout=plan.holdout,
        manifests=plan.manifests,
        models=plan.miniature_judge,
    output:
        scores="results/{subject}/evaluation/base/scores.parquet",
        calibration="results/{subject}/evaluation/base/calibration.json",
    log:
        "results/.logs/score_base/{subject}.log",
    benchmark:
        "results/.benchmarks/score_base/{subject}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
        gpu=plan.project.gpus_per_job,
    params:
        stage=plan.score_base,
        store=plan.store,
        images=plan.index_of_subject,
    message:
        "Score the bare base model for {wildcards.subject}"
    shell:
        'python "$LIKENESS/score_base.py" '
        "--settings {params.stage:q} "
        "--holdout {input.holdout} --manifests {input.manifests} --images {params.images} --store {params.store:q} "
        "--output-folder results/{wildcards.subject}/evaluation/base "
        "2>&1 | tee {log}"


rule score_checkpoints:
    input:
        steps=plan.surgery.steps_of,
        base="results/{subject}/evaluation/base/scores.parquet",
        holdout=plan.holdout,
        manifests=plan.manifests,
        models=plan.miniature_judge,
    output:
        "results/{subject}/evaluation/{variant}/{phase}/scores.parquet",
    log:
        "results/.logs/score_checkpoints/{subject}/{variant}/{phase}.log",
    benchmark:
        "results/.benchmarks/score_checkpoints/{subject}/{variant}/{phase}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
        gpu=plan.project.gpus_per_job,
    params:
        stage=plan.score_checkpoints,
        store=plan.store,
        images=plan.index_of_subject,
    message:
        "Score {wildcards.variant}, phase {wildcards.phase}, of {wildcards.subject}"
    shell:
        'python "$LIKENESS/score_checkpoints.py" '
        "--settings {params.stage:q} "
        "--variant {wildcards.variant} --phase {wildcards.phase} --steps {input.steps} "
        "--holdout {input.holdout} --manifests {input.manifests} --images {params.images} --store {params.store:q} "
        "--base results/{wildcards.subject}/evaluation/base "
        "--output-folder results/{wildcards.subject}/evaluation/{wildcards.variant}/{wildcards.phase} "
        "2>&1 | tee {log}"


rule score_files:
    input:
        loras=plan.loras_of,
        base="results/{subject}/evaluation/base/scores.parquet",
        holdout=plan.holdout,
        manifests=plan.manifests,
        models=plan.miniature_judge,
    output:
        "results/{subject}/evaluation/{variant}/files/scores.parquet",
    log:
        "results/.logs/score_files/{subject}/{variant}.log",
    benchmark:
        "results/.benchmarks/score_files/{subject}/{variant}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
        gpu=plan.project.gpus_per_job,
    params:
        stage=plan.score_checkpoints,
        store=plan.store,
        images=plan.index_of_subject,
    message:
        "Score the files of {wildcards.variant} for {wildcards.subject}"
    shell:
        'python "$LIKENESS/score_checkpoints.py" '
        "--settings {params.stage:q} "
        "--variant {wildcards.variant} --phase files --loras {input.loras:q} "
        "--holdout {input.holdout} --manifests {input.manifests} --images {params.images} --store {params.store:q} "
        "--base results/{wildcards.subject}/evaluation/base "
        "--output-folder results/{wildcards.subject}/evaluation/{wildcards.variant}/files "
        "2>&1 | tee {log}"


rule score_finalists:
    input:
        scores=plan.select_scores,
        steps=plan.step_files,
        base="results/{subject}/evaluation/base/scores.parquet",
        holdout=plan.holdout,
        manifests=plan.manifests,
        models=plan.miniature_judge,
    output:
        "results/{subject}/evaluation/report-half/scores.parquet",
    log:
        "results/.logs/score_finalists/{subject}.log",
    benchmark:
        "results/.benchmarks/score_finalists/{subject}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
        gpu=plan.project.gpus_per_job,
    params:
        stage=plan.score_finalists,
        store=plan.store,
        images=plan.index_of_subject,
        choice=plan.finalists,
        loras=plan.external_flag,
    message:
        "Score the finalists of {wildcards.subject} on the report half"
    shell:
        'python "$LIKENESS/score_finalists.py" '
        "--settings {params.stage:q} "
        "--choice {params.choice:q} --scores {input.scores} --checkpoints {input.steps} {params.loras} "
        "--holdout {input.holdout} --manifests {input.manifests} --images {params.images} --store {params.store:q} "
        "--base results/{wildcards.subject}/evaluation/base "
        "--output-folder results/{wildcards.subject}/evaluation/report-half "
        "2>&1 | tee {log}"


rule choose_checkpoint:
    input:
        scores=plan.all_scores,
        calibration="results/{subject}/evaluation/base/calibration.json",
        holdout=plan.holdout,
    output:
        "results/{subject}/best.json",
    log:
        "results/.logs/choose_checkpoint/{subject}.log",
    benchmark:
        "results/.benchmarks/choose_checkpoint/{subject}.tsv"
    conda:
        "../envs/curate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.choose_checkpoint,
    message:
        "Choose the checkpoint of {wildcards.subject}"
    shell:
        'python "$LIKENESS/choose_checkpoint.py" '
        "--settings {params.stage:q} "
        "--scores {input.scores} --calibration {input.calibration} --output {output} "
        "> {log} 2>&1"
