# Weights for the configured backends, fetched and verified before a run; no rule depends on them.


rule fetch_models:
    output:
        "models/fetched.json",
    log:
        "results/.logs/fetch_models.log",
    benchmark:
        "results/.benchmarks/fetch_models.tsv"
    localrule: True
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        stage=plan.fetch_models,
    message:
        "Fetch and verify the models"
    shell:
        'python "$LIKENESS/fetch_models.py" '
        "--settings {params.stage:q} --output {output} "
        "2>&1 | tee {log}"


rule models:
    input:
        "models/fetched.json",
