# The drawn world's tiny models, trained from scratch; only tests and the demo use them. Each folder is built whole beside
# its place and carries a manifest of hashes; a copy of it beside the folder is what jobs depend on.


rule build_miniature_base:
    output:
        "models/miniature/base.json",
    log:
        "results/.logs/build_miniature_base.log",
    benchmark:
        "results/.benchmarks/build_miniature_base.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        stage=plan.build_miniature_base,
    message:
        "Train the drawn world's base model"
    shell:
        "rm -rf models/miniature/base && "
        'python "$LIKENESS/build_miniature_base.py" --folder models/miniature/base '
        "> {log} 2>&1 && cp models/miniature/base/manifest.json {output}"


rule build_miniature_pack:
    output:
        "models/miniature/{parts}.json",
    log:
        "results/.logs/build_miniature_pack/{parts}.log",
    benchmark:
        "results/.benchmarks/build_miniature_pack/{parts}.tsv"
    wildcard_constraints:
        parts="pack|sam2|vlm",
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        stage=plan.build_miniature_pack,
    message:
        "Train the drawn world's {wildcards.parts}"
    shell:
        "rm -rf models/miniature/{wildcards.parts} && "
        'python "$LIKENESS/build_miniature_pack.py" --parts {wildcards.parts} --folder models/miniature/{wildcards.parts} '
        "> {log} 2>&1 && cp models/miniature/{wildcards.parts}/manifest.json {output}"
