# One line of text for every photo or pair; a sidecar wins over captions.csv, which wins over the model.


rule write_captions:
    input:
        images=plan.index_of_shard,
        quality="results/{subject}/shards/quality/{shard}.parquet",
        sidecars=plan.sidecars_of_shard,
    output:
        "results/{subject}/shards/captions/{shard}.parquet",
    log:
        "results/.logs/write_captions/{subject}/{shard}.log",
    benchmark:
        "results/.benchmarks/write_captions/{subject}/{shard}.tsv"
    retries: 2
    conda:
        "../envs/captions.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
        gpu=plan.gpus_of_captions,
    params:
        stage=plan.write_captions,
        store=plan.store,
    message:
        "Write captions of {wildcards.subject}, shard {wildcards.shard}"
    shell:
        'python "$LIKENESS/write_captions.py" '
        "--settings {params.stage:q} "
        "--images {input.images} --quality {input.quality} "
        "--store {params.store:q} --output {output} "
        "2>&1 | tee {log}"


rule merge_captions:
    input:
        tables=expand(
            "results/{{subject}}/shards/captions/{shard}.parquet", shard=plan.shards
        ),
        images=plan.index_of_shards,
    output:
        "results/{subject}/captions.parquet",
    log:
        "results/.logs/merge_captions/{subject}.log",
    benchmark:
        "results/.benchmarks/merge_captions/{subject}.tsv"
    conda:
        "../envs/captions.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.merge_captions,
    message:
        "Merge the captions of {wildcards.subject}"
    shell:
        'python "$LIKENESS/merge_captions.py" '
        "--settings {params.stage:q} "
        "--tables {input.tables} --images {input.images} "
        "--csv results/{wildcards.subject}/captions.csv --output {output} "
        "> {log} 2>&1"
