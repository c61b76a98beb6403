rule store_features:
    input:
        data=lambda w: f"{data_of(w.run)}/meta.json",
        model=f"{RESULTS}/runs/{{run}}/model.safetensors",
    output:
        f"{RESULTS}/runs/{{run}}/features.npz",
    log:
        f"{RESULTS}/logs/features/{{run}}.log",
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        **jobs("store_features", gpu=CONFIG.gpus, mem_mb=4000, runtime=60),
    params:
        run=lambda w, input: run_json(w.run),
        device=lambda w, input: CONFIG.device,
        weights=lambda w, input: input.model,
        data=subpath(input.data, parent=True),
    message:
        "features of {wildcards.run}"
    shell:
        "kdpipe features --run {params.run:q} --weights {params.weights:q} --data {params.data:q}"
        " --out {output:q} --device {params.device} --threads {threads} 2>&1 | tee {log:q}"


rule store_checkpoint_features:
    input:
        data=lambda w: f"{data_of(w.teacher)}/meta.json",
        checkpoint=f"{RESULTS}/runs/{{teacher}}/sampled/{{checkpoint}}/checkpoint.json",
    output:
        f"{RESULTS}/runs/{{teacher}}/sampled/{{checkpoint}}/features.npz",
    log:
        f"{RESULTS}/logs/features/{{teacher}}-{{checkpoint}}.log",
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        **jobs("store_checkpoint_features", gpu=CONFIG.gpus, mem_mb=4000, runtime=60),
    params:
        run=lambda w, input: run_json(w.teacher),
        device=lambda w, input: CONFIG.device,
        weights=lambda w, input: checkpoint_weights(w),
        data=subpath(input.data, parent=True),
    message:
        "features of {wildcards.checkpoint} of {wildcards.teacher}"
    shell:
        "kdpipe features --run {params.run:q} --weights {params.weights:q} --data {params.data:q}"
        " --out {output:q} --device {params.device} --threads {threads} 2>&1 | tee {log:q}"


rule evaluate_run:
    input:
        predictions=f"{RESULTS}/runs/{{run}}/predictions.npz",
        status=f"{RESULTS}/runs/{{run}}/status.json",
        history=f"{RESULTS}/runs/{{run}}/history.csv",
        teacher=teacher_predictions,
        features=lambda w: features_of(w.run),
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
        features=lambda w: features_of(w.teacher, w.checkpoint),
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
