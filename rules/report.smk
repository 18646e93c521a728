# One page over all subjects, and one of the curation alone, before anything that needs a GPU.


rule write_config:
    output:
        "results/{subject}/config.yaml",
    log:
        "results/.logs/write_config/{subject}.log",
    benchmark:
        "results/.benchmarks/write_config/{subject}.tsv"
    conda:
        "../envs/curate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.write_config,
    message:
        "Write the resolved settings of {wildcards.subject}"
    shell:
        'python "$LIKENESS/write_config.py" '
        "--settings {params.stage:q} --output {output} "
        "> {log} 2>&1"


rule write_curation:
    input:
        tables=plan.curated_tables,
        decisions=plan.of_all("results/{subject}/phases/decisions.parquet"),
    output:
        "results/report/curate.html",
    log:
        "results/.logs/write_curation.log",
    benchmark:
        "results/.benchmarks/write_curation.tsv"
    conda:
        "../envs/curate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.write_curation,
        store=plan.store,
    message:
        "Write the page of every photo and its fate"
    shell:
        'python "$LIKENESS/write_curation.py" '
        "--settings {params.stage:q} "
        "--store {params.store:q} --results results --output {output} "
        "> {log} 2>&1"


rule write_report:
    input:
        decisions=plan.of_all("results/{subject}/phases/decisions.parquet"),
        refined=plan.refined_tables,
        published=plan.of_all("results/{subject}/lora/published.json"),
        measured=plan.surgery.all_measured,
        curation="results/report/curate.html",
    output:
        scores="results/scores.parquet",
        page=report("results/report/index.html", category="Report"),
    log:
        "results/.logs/write_report.log",
    benchmark:
        "results/.benchmarks/write_report.tsv"
    conda:
        "../envs/curate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        stage=plan.write_report,
        store=plan.store,
    message:
        "Write the report"
    shell:
        'python "$LIKENESS/write_report.py" '
        "--settings {params.stage:q} "
        "--store {params.store:q} --results results --scores {output.scores} --output {output.page} "
        "> {log} 2>&1"


rule curate:
    input:
        "results/report/curate.html",
        [file for subject in plan.subjects for file in plan.exported_untrained(subject)],


rule report:
    input:
        "results/report/index.html",


for subject in plan.subjects:

    rule:
        name:
            subject
        input:
            plan.products(subject),
