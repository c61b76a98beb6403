rule train_teacher:
    input:
        lambda w: inputs_of(w.teacher),
    output:
        model=f"{RESULTS}/runs/{{teacher}}/model.safetensors",
        status=f"{RESULTS}/runs/{{teacher}}/status.json",
    log:
        f"{RESULTS}/logs/train/{{teacher}}.log",
    retries: 0 if PACKED else None
    localrule: PACKED
    conda:
        "../../environment.yml"
    threads: 1 if PACKED else each(threads_of, "teacher")
    resources:
        **jobs(
            "train_teacher",
            gpu=0 if PACKED else each(gpus_of, "teacher"),
            mem_mb=4000,
            runtime=240,
            runs=lambda w: [w.teacher],
        ),
    params:
        options=lambda w, input: training(w.teacher),
    message:
        "train {wildcards.teacher}"
    shell:
        "kdpipe train {params.options} --threads {threads} --log {log:q}"


rule train_part:
    input:
        lambda w: inputs_of(w.part),
    output:
        model=f"{RESULTS}/runs/{{part}}/model.safetensors",
        status=f"{RESULTS}/runs/{{part}}/status.json",
    log:
        f"{RESULTS}/logs/train/{{part}}.log",
    retries: 0 if PACKED else None
    localrule: PACKED
    conda:
        "../../environment.yml"
    threads: 1 if PACKED else each(threads_of, "part")
    resources:
        **jobs(
            "train_part",
            gpu=0 if PACKED else each(gpus_of, "part"),
            mem_mb=4000,
            runtime=120,
            runs=lambda w: [w.part],
        ),
    params:
        options=lambda w, input: training(w.part),
    message:
        "train {wildcards.part}"
    shell:
        "kdpipe train {params.options} --threads {threads} --log {log:q}"


rule adopt_teacher:
    input:
        data=lambda w: f"{data_of(w.imported)}/meta.json",
        weights=imported_weights,
    output:
        model=f"{RESULTS}/runs/{{imported}}/model.safetensors",
        status=f"{RESULTS}/runs/{{imported}}/status.json",
    log:
        f"{RESULTS}/logs/adopt/{{imported}}.log",
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        **jobs("adopt_teacher", gpu=CONFIG.gpus, mem_mb=4000, runtime=60),
    params:
        run=lambda w, input: run_json(w.imported),
        device=lambda w, input: CONFIG.device,
        data=subpath(input.data, parent=True),
        out=subpath(output.model, parent=True),
    message:
        "adopt {wildcards.imported}"
    shell:
        "kdpipe adopt --run {params.run:q} --out {params.out:q} --data {params.data:q} --weights {input.weights:q}"
        " --device {params.device} --threads {threads} 2>&1 | tee {log:q}"


rule sample_checkpoint:
    input:
        data=lambda w: f"{data_of(w.teacher)}/meta.json",
        status=f"{RESULTS}/runs/{{teacher}}/status.json",
        model=f"{RESULTS}/runs/{{teacher}}/model.safetensors",
    output:
        f"{RESULTS}/runs/{{teacher}}/sampled/{{point}}/checkpoint.json",
    log:
        f"{RESULTS}/logs/sample/{{teacher}}-{{point}}.log",
    conda:
        "../../environment.yml"
    threads: each(threads_of, "teacher")
    resources:
        **jobs("sample_checkpoint", gpu=each(gpus_of, "teacher"), mem_mb=4000, runtime=60),
    params:
        run=lambda w, input: run_json(w.teacher),
        device=lambda w, input: CONFIG.device,
        data=subpath(input.data, parent=True),
        out=subpath(input.model, parent=True),
        teacher=lambda w, input: shlex.join(taught_by(w.teacher)),
        epoch=lambda w: epoch_of(w.point),
    message:
        "sample {wildcards.point} of {wildcards.teacher}"
    shell:
        "kdpipe sample --run {params.run:q} --out {params.out:q} --data {params.data:q} --epoch {params.epoch}"
        " {params.teacher} --device {params.device} --threads {threads} 2>&1 | tee {log:q}"


rule choose_checkpoint:
    input:
        checkpoints=candidates,
        status=f"{RESULTS}/runs/{{teacher}}/status.json",
    output:
        f"{RESULTS}/runs/{{teacher}}/sampled/{{choice}}/checkpoint.json",
    log:
        f"{RESULTS}/logs/choose/{{teacher}}-{{choice}}.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        run=subpath(input.status, parent=True),
        choice=lambda w: canonical(choice_of(w).model_dump(mode="json")),
    message:
        "choose {wildcards.choice} of {wildcards.teacher}"
    shell:
        "kdpipe choose --run {params.run:q} --choice {params.choice:q} 2>&1 | tee {log:q}"
