rule prepare_data:
    output:
        f"{RESULTS}/data/{{data}}/meta.json",
    log:
        f"{RESULTS}/logs/prepare/{{data}}.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        name=lambda w: PLAN.dataset_of(w.data),
        source=lambda w, input: CONFIG.source(PLAN.dataset_of(w.data)),
        folder=lambda w, input: CONFIG.folder,
        download=lambda w, input: "--download" if CONFIG.download else "",
        out=subpath(output[0], parent=True),
    message:
        "prepare {params.name}"
    shell:
        "kdpipe prepare {params.name} --out {params.out:q} --source {params.source:q}"
        " --folder {params.folder:q} {params.download} 2>&1 | tee {log:q}"


rule prefetch:
    input:
        [f"{RESULTS}/data/{data}/meta.json" for data in PLAN.data],
    message:
        "every data set is prepared"
