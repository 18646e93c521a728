# Masks of face, head and person for every candidate face.


rule make_masks:
    input:
        images=plan.index_of_shard,
        faces="results/{subject}/shards/faces/{shard}.parquet",
        models=plan.miniature_masks,
    output:
        "results/{subject}/shards/masks/{shard}.parquet",
    log:
        "results/.logs/make_masks/{subject}/{shard}.log",
    benchmark:
        "results/.benchmarks/make_masks/{subject}/{shard}.tsv"
    conda:
        "../envs/masks.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
        gpu=plan.gpus_of_masks,
    params:
        stage=plan.make_masks,
        store=plan.store,
    message:
        "Make masks of {wildcards.subject}, shard {wildcards.shard}"
    shell:
        'python "$LIKENESS/make_masks.py" '
        "--settings {params.stage:q} "
        "--images {input.images} --faces {input.faces} "
        "--store {params.store:q} --output {output} "
        "> {log} 2>&1"


rule merge_masks:
    input:
        tables=expand(
            "results/{{subject}}/shards/masks/{shard}.parquet", shard=plan.shards
        ),
        faces="results/{subject}/faces.parquet",
    output:
        "results/{subject}/masks.parquet",
    log:
        "results/.logs/merge_masks/{subject}.log",
    benchmark:
        "results/.benchmarks/merge_masks/{subject}.tsv"
    conda:
        "../envs/curate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.merge_masks,
        store=plan.store,
    message:
        "Merge the masks of {wildcards.subject}"
    shell:
        'python "$LIKENESS/merge_masks.py" '
        "--settings {params.stage:q} "
        "--tables {input.tables} --faces {input.faces} --store {params.store:q} "
        "--masks results/{wildcards.subject}/images/masks --output {output} "
        "> {log} 2>&1"
