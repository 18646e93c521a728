# Every file found in a subject's folders becomes a row, usable or not.


rule index_photos:
    input:
        plan.files_of_shard,
    output:
        "results/{subject}/shards/photos/{shard}.parquet",
    log:
        "results/.logs/index_photos/{subject}/{shard}.log",
    benchmark:
        "results/.benchmarks/index_photos/{subject}/{shard}.tsv"
    conda:
        "../envs/curate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.index_photos,
        shards=plan.project.shards,
        store=plan.store,
    message:
        "Index photos of {wildcards.subject}, shard {wildcards.shard}"
    shell:
        'python "$LIKENESS/index_photos.py" '
        "--settings {params.stage:q} "
        "--shard {wildcards.shard} --shards {params.shards} "
        "--store {params.store:q} --output {output} "
        "> {log} 2>&1"


rule index_pairs:
    input:
        plan.files_of_shard,
    output:
        "results/{subject}/shards/pairs/{shard}.parquet",
    log:
        "results/.logs/index_pairs/{subject}/{shard}.log",
    benchmark:
        "results/.benchmarks/index_pairs/{subject}/{shard}.tsv"
    conda:
        "../envs/curate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.index_pairs,
        shards=plan.project.shards,
        store=plan.store,
    message:
        "Index pairs of {wildcards.subject}, shard {wildcards.shard}"
    shell:
        'python "$LIKENESS/index_pairs.py" '
        "--settings {params.stage:q} "
        "--shard {wildcards.shard} --shards {params.shards} "
        "--store {params.store:q} --output {output} "
        "> {log} 2>&1"


rule merge_photos:
    input:
        expand("results/{{subject}}/shards/{{kind}}/{shard}.parquet", shard=plan.shards),
    output:
        "results/{subject}/{kind}.parquet",
    log:
        "results/.logs/merge_photos/{subject}/{kind}.log",
    benchmark:
        "results/.benchmarks/merge_photos/{subject}/{kind}.tsv"
    wildcard_constraints:
        kind="photos|pairs",
    conda:
        "../envs/curate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.merge_photos,
    message:
        "Merge the {wildcards.kind} of {wildcards.subject}"
    shell:
        'python "$LIKENESS/merge_photos.py" '
        "--settings {params.stage:q} "
        "--tables {input} --output {output} "
        "> {log} 2>&1"
