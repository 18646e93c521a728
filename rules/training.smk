# Pictures of the class where a loss reads them, cached latents and embeddings (one table for all variants of which encoding reads
# the same), then one training a variant and phase, here or by another trainer; manifests are taken behind the checkpoint.


rule index_regularisation:
    input:
        plan.regularisation_files,
    output:
        "results/{subject}/regularisation/photos.parquet",
    log:
        "results/.logs/index_regularisation/{subject}.log",
    benchmark:
        "results/.benchmarks/index_regularisation/{subject}.tsv"
    conda:
        "../envs/curate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.index_regularisation,
        store=plan.store,
    message:
        "Index pictures of the class of {wildcards.subject}"
    shell:
        'python "$LIKENESS/index_regularisation.py" '
        "--settings {params.stage:q} --store {params.store:q} --output {output} "
        "> {log} 2>&1"


rule draw_class_images:
    input:
        models=plan.miniature_base,
    output:
        "results/{subject}/regularisation/drawn.parquet",
    log:
        "results/.logs/draw_class_images/{subject}.log",
    benchmark:
        "results/.benchmarks/draw_class_images/{subject}.tsv"
    retries: 1
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
        gpu=plan.project.gpus_per_job,
    params:
        stage=plan.draw_class_images,
        store=plan.store,
    message:
        "Draw pictures of the class of {wildcards.subject} with the base model"
    shell:
        'python "$LIKENESS/draw_class_images.py" '
        "--settings {params.stage:q} --store {params.store:q} --output {output} "
        "2>&1 | tee {log}"


rule encode_samples:
    input:
        manifest=plan.manifest,
        holdout=plan.holdout_to_encode,
        faces=plan.faces_to_learn,
        regularisation=plan.regularisation_to_encode,
        models=plan.miniature_base,
    output:
        "results/{subject}/encoded/{variant}/{phase}.parquet",
    log:
        "results/.logs/encode_samples/{subject}/{variant}/{phase}.log",
    benchmark:
        "results/.benchmarks/encode_samples/{subject}/{variant}/{phase}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
        gpu=plan.project.gpus_per_job,
    params:
        stage=plan.encode_samples,
        store=plan.store,
        images=plan.index_of_subject,
        holdout=plan.holdout_flag,
        faces=plan.faces_flag,
        regularisation=plan.regularisation_flag,
    message:
        "Encode for {wildcards.variant} and those like it, phase {wildcards.phase}, of {wildcards.subject}"
    shell:
        'python "$LIKENESS/encode_samples.py" '
        "--settings {params.stage:q} "
        "--manifest {input.manifest} {params.holdout} {params.faces} {params.regularisation} --images {params.images} "
        "--store {params.store:q} --output {output} "
        "2>&1 | tee {log}"


rule train_lora:
    input:
        manifest=plan.manifest,
        encoded=plan.encoded,
        previous=plan.previous_steps,
        initial=plan.initial_lora,
        ablation=plan.targets_table,
        models=plan.miniature_training,
    output:
        log="results/{subject}/train/{variant}/{phase}/log.parquet",
        steps="results/{subject}/train/{variant}/{phase}/steps.json",
    log:
        "results/.logs/train_lora/{subject}/{variant}/{phase}.log",
    benchmark:
        "results/.benchmarks/train_lora/{subject}/{variant}/{phase}.tsv"
    wildcard_constraints:
        variant=plan.variant_of["native"],
    retries: 1
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
        gpu=plan.gpus_of_training,
    params:
        stage=plan.train_lora,
        store=plan.store,
        previous=plan.previous_flag,
        ablation=plan.targets_flag,
    message:
        "Train {wildcards.variant}, phase {wildcards.phase}, of {wildcards.subject}"
    shell:
        'python "$LIKENESS/train_lora.py" '
        "--settings {params.stage:q} "
        "--manifest {input.manifest} --encoded {input.encoded} {params.previous} {params.ablation} "
        "--store {params.store:q} --output-folder results/{wildcards.subject}/train/{wildcards.variant}/{wildcards.phase} "
        "2>&1 | tee {log}"


rule train_external:
    input:
        manifest=plan.manifest,
        models=plan.miniature_base,
    output:
        log="results/{subject}/train/{variant}/{phase}/log.parquet",
        steps="results/{subject}/train/{variant}/{phase}/steps.json",
    log:
        "results/.logs/train_external/{subject}/{variant}/{phase}.log",
    benchmark:
        "results/.benchmarks/train_external/{subject}/{variant}/{phase}.tsv"
    wildcard_constraints:
        variant=plan.variant_of["external"],
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
        gpu=plan.project.gpus_per_job,
    params:
        stage=plan.train_external,
        store=plan.store,
        images=plan.index_of_subject,
    message:
        "Train {wildcards.variant}, phase {wildcards.phase}, of {wildcards.subject} with another trainer"
    shell:
        'python "$LIKENESS/train_external.py" '
        "--settings {params.stage:q} "
        "--manifest {input.manifest} --images {params.images} --store {params.store:q} "
        "--output-folder results/{wildcards.subject}/train/{wildcards.variant}/{wildcards.phase} "
        "2>&1 | tee {log}"
