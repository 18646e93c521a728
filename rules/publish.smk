# The chosen checkpoint in both file formats, with its card; what was published before goes to the archive.


rule publish_lora:
    input:
        best="results/{subject}/best.json",
        scores=plan.all_scores,
        steps=plan.step_files,
        holdout=plan.holdout,
        models=plan.miniature_base,
    output:
        "results/{subject}/lora/published.json",
    log:
        "results/.logs/publish_lora/{subject}.log",
    benchmark:
        "results/.benchmarks/publish_lora/{subject}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.publish_lora,
        store=plan.store,
        loras=plan.external_flag,
    message:
        "Publish the LoRA of {wildcards.subject}"
    shell:
        'python "$LIKENESS/publish_lora.py" '
        "--settings {params.stage:q} "
        "--subject {wildcards.subject} --best {input.best} --scores {input.scores} "
        "--checkpoints {input.steps} {params.loras} --decisions results/{wildcards.subject}/phases/decisions.parquet "
        "--store {params.store:q} --output-folder results/{wildcards.subject}/lora "
        "> {log} 2>&1"
