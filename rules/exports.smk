# Datasets and configs for other trainers.


rule export_dataset:
    input:
        manifest=plan.manifest,
    output:
        "results/{subject}/exports/{phase}/{trainer}/files.json",
    log:
        "results/.logs/export_dataset/{subject}/{phase}/{trainer}.log",
    benchmark:
        "results/.benchmarks/export_dataset/{subject}/{phase}/{trainer}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.export_dataset,
        store=plan.store,
        images=plan.index_of_subject,
    message:
        "Export phase {wildcards.phase} of {wildcards.subject} for {wildcards.trainer}"
    shell:
        'python "$LIKENESS/export_dataset.py" '
        "--settings {params.stage:q} "
        "--trainer {wildcards.trainer} --manifest {input.manifest} "
        "--images {params.images} --store {params.store:q} "
        "--output-folder results/{wildcards.subject}/exports/{wildcards.phase}/{wildcards.trainer} "
        "> {log} 2>&1"
