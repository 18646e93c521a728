# Boxes, landmarks, embeddings and crops of every face; the merge says whose face is the subject's.


rule detect_faces:
    input:
        images=plan.index_of_shard,
        models=plan.miniature_pack,
    output:
        "results/{subject}/shards/faces/{shard}.parquet",
    log:
        "results/.logs/detect_faces/{subject}/{shard}.log",
    benchmark:
        "results/.benchmarks/detect_faces/{subject}/{shard}.tsv"
    conda:
        "../envs/faces.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.detect_faces,
        store=plan.store,
    message:
        "Detect faces of {wildcards.subject}, shard {wildcards.shard}"
    shell:
        'python "$LIKENESS/detect_faces.py" '
        "--settings {params.stage:q} "
        "--images {input.images} --store {params.store:q} --output {output} "
        "> {log} 2>&1"


rule merge_faces:
    input:
        tables=expand(
            "results/{{subject}}/shards/faces/{shard}.parquet", shard=plan.shards
        ),
        references=plan.references,
        models=plan.miniature_pack,
    output:
        "results/{subject}/faces.parquet",
    log:
        "results/.logs/merge_faces/{subject}.log",
    benchmark:
        "results/.benchmarks/merge_faces/{subject}.tsv"
    conda:
        "../envs/faces.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.merge_faces,
        store=plan.store,
    message:
        "Find the subject's face in the photos of {wildcards.subject}"
    shell:
        'python "$LIKENESS/merge_faces.py" '
        "--settings {params.stage:q} "
        "--tables {input.tables} --store {params.store:q} "
        "--crops results/{wildcards.subject}/images/crops --output {output} "
        "> {log} 2>&1"
