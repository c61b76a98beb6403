rule distil_student:
    input:
        lambda w: inputs_of(w.student),
    output:
        model=f"{RESULTS}/runs/{{student}}/model.safetensors",
        status=f"{RESULTS}/runs/{{student}}/status.json",
    log:
        f"{RESULTS}/logs/train/{{student}}.log",
    retries: 0 if PACKED else None
    localrule: PACKED
    conda:
        "../../environment.yml"
    threads: 1 if PACKED else each(threads_of, "student")
    resources:
        **jobs(
            "distil_student",
            gpu=0 if PACKED else each(gpus_of, "student"),
            mem_mb=4000,
            runtime=240,
            runs=lambda w: [w.student],
        ),
    params:
        options=lambda w, input: training(w.student),
    message:
        "distil {wildcards.student}"
    shell:
        "kdpipe train {params.options} --threads {threads} --log {log:q}"
