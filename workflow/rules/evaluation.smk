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


rule evaluate_study:
    input:
        results_of,
    output:
        f"{RESULTS}/studies/{{study}}/measures.json",
    log:
        f"{RESULTS}/logs/evaluate/{{study}}.log",
    conda:
        "../../environment.yml"
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        revision=measures.REVISION,
        plan=lambda w, input: PLAN_FILE,
        results=lambda w, input: RESULTS,
    message:
        "evaluate {wildcards.study}"
    shell:
        "kdpipe evaluate {wildcards.study} --plan {params.plan:q} --results {params.results:q}"
        " --processes {threads} 2>&1 | tee {log:q}"
