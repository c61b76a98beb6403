rule run_bench:
    input:
        data=lambda w: (
            f"{RESULTS}/data/{PLAN.benches[w.bench].data}/meta.json" if PLAN.benches[w.bench].data else []
        ),
    output:
        status=f"{RESULTS}/runs/{{bench}}/status.json",
        spec=f"{RESULTS}/runs/{{bench}}/spec.json",
        provenance=f"{RESULTS}/runs/{{bench}}/provenance.json",
    log:
        f"{RESULTS}/logs/benches/{{bench}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{bench}}.tsv"
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        **jobs("run_bench", mem_mb=4000, runtime=60),
    params:
        spec=lambda w: canonical(PLAN.benches[w.bench].run.spec.model_dump(mode="json")),
        run=lambda w, input: canonical(PLAN.benches[w.bench].run.model_dump(mode="json")),
        data=lambda w, input: f"--data {RESULTS}/data/{PLAN.benches[w.bench].data}" if input.data else "",
        out=subpath(output.status, parent=True),
    message:
        "run {wildcards.bench}"
    shell:
        "kdpipe bench --run {params.run:q} --out {params.out:q} {params.data} --threads {threads} 2>&1 | tee {log:q}"


rule draw_plot:
    input:
        lambda w: [*bench_tables(w.study), *measures_of(w.study)],
    output:
        report(
            f"{RESULTS}/studies/{{study}}/{{plot}}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"study": "{study}", "file": "{plot}"},
        ),
        multiext(f"{RESULTS}/studies/{{study}}/{{plot}}", ".png", ".csv", ".json"),
    log:
        f"{RESULTS}/logs/render/{{study}}-{{plot}}.log",
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
        "draw {wildcards.plot} of {wildcards.study}"
    shell:
        "kdpipe figure {wildcards.study} {wildcards.plot} --plan {params.plan:q} --results {params.results:q}"
        " 2>&1 | tee {log:q}"
