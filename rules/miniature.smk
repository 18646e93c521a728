# The drawn world's tiny models, trained from scratch; only tests and the demo use them.


rule build_miniature_base:
    output:
        "models/miniature/base/manifest.json",
    log:
        "results/.logs/build_miniature_base.log",
    benchmark:
        "results/.benchmarks/build_miniature_base.tsv"
    conda:
        "../envs/curate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.build_miniature_base,
    message:
        "Train the drawn world's base model"
    shell:
        'python "$LIKENESS/build_miniature_base.py" '
        "--settings {params.stage:q} "
        "--folder models/miniature/base "
        "> {log} 2>&1"


rule build_miniature_pack:
    output:
        "models/miniature/{part}/manifest.json",
    log:
        "results/.logs/build_miniature_pack/{part}.log",
    benchmark:
        "results/.benchmarks/build_miniature_pack/{part}.tsv"
    wildcard_constraints:
        part="pack|evaluation_pack|sam2|vlm",
    conda:
        "../envs/curate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.build_miniature_pack,
    message:
        "Train the drawn world's {wildcards.part}"
    shell:
        'python "$LIKENESS/build_miniature_pack.py" '
        "--settings {params.stage:q} "
        "--part {wildcards.part} --folder models/miniature/{wildcards.part} "
        "> {log} 2>&1"
