# Measures of every photo or pair; thresholds belong to the phase decision.


rule measure_quality:
    input:
        images=plan.index_of_shard,
        faces="results/{subject}/shards/faces/{shard}.parquet",
        masks="results/{subject}/shards/masks/{shard}.parquet",
    output:
        "results/{subject}/shards/quality/{shard}.parquet",
    log:
        "results/.logs/measure_quality/{subject}/{shard}.log",
    benchmark:
        "results/.benchmarks/measure_quality/{subject}/{shard}.tsv"
    conda:
        "../envs/masks.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.measure_quality,
        store=plan.store,
    message:
        "Measure quality of {wildcards.subject}, shard {wildcards.shard}"
    shell:
        'python "$LIKENESS/measure_quality.py" '
        "--settings {params.stage:q} "
        "--images {input.images} --faces {input.faces} --masks {input.masks} "
        "--store {params.store:q} --output {output} "
        "> {log} 2>&1"


rule merge_quality:
    input:
        tables=expand(
            "results/{{subject}}/shards/quality/{shard}.parquet", shard=plan.shards
        ),
        images=plan.index_of_subject,
        faces="results/{subject}/faces.parquet",
    output:
        "results/{subject}/quality.parquet",
    log:
        "results/.logs/merge_quality/{subject}.log",
    benchmark:
        "results/.benchmarks/merge_quality/{subject}.tsv"
    conda:
        "../envs/masks.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.merge_quality,
    message:
        "Merge the quality of {wildcards.subject}"
    shell:
        'python "$LIKENESS/merge_quality.py" '
        "--settings {params.stage:q} "
        "--tables {input.tables} --images {input.images} --faces {input.faces} --output {output} "
        "> {log} 2>&1"
