rule evaluate_run:
    input:
        predictions=f"{RESULTS}/runs/{{run}}/predictions.npz",
        status=f"{RESULTS}/runs/{{run}}/status.json",
        history=f"{RESULTS}/runs/{{run}}/history.csv",
        teacher=teacher_predictions,
    output:
        f"{RESULTS}/runs/{{run}}/metrics.json",
    log:
        f"{RESULTS}/logs/evaluate/{{run}}.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        run=subpath(output[0], parent=True),
        teacher=lambda w, input: f"--teacher {teacher_of(w.run)}" if input.teacher else "",
    message:
        "evaluate {wildcards.run}"
    shell:
        "kdpipe evaluate --run {params.run:q} {params.teacher} 2>&1 | tee {log:q}"


rule evaluate_checkpoint:
    input:
        predictions=f"{RESULTS}/runs/{{teacher}}/sampled/{{checkpoint}}/predictions.npz",
        status=f"{RESULTS}/runs/{{teacher}}/sampled/{{checkpoint}}/status.json",
    output:
        f"{RESULTS}/runs/{{teacher}}/sampled/{{checkpoint}}/metrics.json",
    log:
        f"{RESULTS}/logs/evaluate/{{teacher}}-{{checkpoint}}.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        run=subpath(output[0], parent=True),
    message:
        "evaluate {wildcards.checkpoint} of {wildcards.teacher}"
    shell:
        "kdpipe evaluate --run {params.run:q} 2>&1 | tee {log:q}"
