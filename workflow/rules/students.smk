rule distil_student:
    input:
        data=lambda w: f"{data_of(w.student)}/meta.json",
        teacher=lambda w: teacher_stamps(w.student),
        pack=ancient(lambda w: packed_in(w.student)),
        banks=ancient(lambda w: banked_in(w.student)),
    output:
        model=f"{RESULTS}/runs/{{student}}/model.safetensors",
        predictions=f"{RESULTS}/runs/{{student}}/predictions.npz",
        history=f"{RESULTS}/runs/{{student}}/history.csv",
        status=f"{RESULTS}/runs/{{student}}/status.json",
        spec=f"{RESULTS}/runs/{{student}}/spec.json",
        provenance=f"{RESULTS}/runs/{{student}}/provenance.json",
    log:
        f"{RESULTS}/logs/train/{{student}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{student}}.tsv"
    retries: 0 if PACKED else None
    localrule: PACKED
    conda:
        "../../environment.yml"
    threads: lambda w: 1 if PACKED else threads_of(w.student)
    resources:
        **jobs(
            "distil_student",
            gpu=0 if PACKED else lambda w: gpus_of(w.student),
            mem_mb=4000,
            runtime=240,
            runs=lambda w: [w.student],
        ),
    params:
        spec=lambda w: spec(w.student),
        options=lambda w, input: training(w.student),
    message:
        "distil {wildcards.student}"
    shell:
        "kdpipe train {params.options} --threads {threads} --log {log:q}"
