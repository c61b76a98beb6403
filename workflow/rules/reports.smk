rule render_study:
    input:
        lambda w: measures_of(w.study),
        plots=lambda w: plot_records(w.study),
    output:
        report(
            f"{RESULTS}/studies/{{study}}/table.html",
            caption="../report/study.rst",
            category="Tables",
            labels={"study": "{study}", "file": "table"},
        ),
        csv=f"{RESULTS}/studies/{{study}}/table.csv",
        markdown=f"{RESULTS}/studies/{{study}}/table.md",
        latex=f"{RESULTS}/studies/{{study}}/table.tex",
        seeds=f"{RESULTS}/studies/{{study}}/seeds.csv",
    log:
        f"{RESULTS}/logs/render/{{study}}.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        digest=lambda w: digest_of(w.study),
        plan=lambda w, input: PLAN_FILE,
        results=lambda w, input: RESULTS,
    message:
        "render {wildcards.study}"
    shell:
        "kdpipe table {wildcards.study} --plan {params.plan:q} --results {params.results:q} 2>&1 | tee {log:q}"


rule draw_diagram:
    input:
        lambda w: diagram_inputs(w.study, w.diagram),
    output:
        report(
            f"{RESULTS}/studies/{{study}}/{{diagram}}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"study": "{study}", "file": "{diagram}"},
        ),
        multiext(f"{RESULTS}/studies/{{study}}/{{diagram}}", ".png", ".csv"),
    log:
        f"{RESULTS}/logs/render/{{study}}-{{diagram}}.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        digest=lambda w: digest_of(w.study),
        plan=lambda w, input: PLAN_FILE,
        results=lambda w, input: RESULTS,
    message:
        "draw {wildcards.diagram} of {wildcards.study}"
    shell:
        "kdpipe figure {wildcards.study} {wildcards.diagram} --plan {params.plan:q} --results {params.results:q}"
        " 2>&1 | tee {log:q}"


rule render_report:
    input:
        [f"{RESULTS}/studies/{study}/table.html" for study in PLAN.studies],
        diagrams(),
    output:
        multiext(f"{RESULTS}/report/", "index.html", "how-to-read.html", "provenance.html"),
        [directory(f"{RESULTS}/report/{folder}") for folder in REPORT_FOLDERS],
    log:
        f"{RESULTS}/logs/report.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        digest=lambda w: [digest_of(study) for study in PLAN.studies],
        plan=lambda w, input: PLAN_FILE,
        results=lambda w, input: RESULTS,
        tracking=lambda w, input: TRACKING,
        sync=lambda w, input: SYNC if TRACKING else ":",  # first, so that the pages know the runs in MLflow
    message:
        "render the report"
    shell:
        "{{ {params.sync} && kdpipe report --plan {params.plan:q} --results {params.results:q} {params.tracking}; }}"
        " 2>&1 | tee {log:q}"
