rule distil_student:
    input:
        data=lambda w: f"{data_of(w.student)}/meta.json",
        teacher=lambda w: teacher_stamps(w.student),
    output:
        model=f"{RESULTS}/runs/{{student}}/model.safetensors",
        predictions=f"{RESULTS}/runs/{{student}}/predictions.npz",
        history=f"{RESULTS}/runs/{{student}}/history.csv",
        status=f"{RESULTS}/runs/{{student}}/status.json",
        spec=f"{RESULTS}/runs/{{student}}/spec.json",
        provenance=f"{RESULTS}/runs/{{student}}/provenance.json",
    log:
        f"{RESULTS}/runs/{{student}}/train.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{student}}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda w: threads_of(w.student)
    resources:
        gpu=lambda w: gpus_of(w.student),
        mem_mb=4000,
        runtime=240,
    params:
        spec=lambda w: spec(w.student),
        run=lambda w, input: run_json(w.student),
        device=lambda w, input: CONFIG.device,
        teacher=lambda w, input: taught_by(w.student),
        gradients=lambda w, input: PLAN.runs[w.student].gradients,
        data=subpath(input.data, parent=True),
        out=subpath(output.model, parent=True),
    message:
        "distil {wildcards.student}"
    shell:
        "kdpipe train --run {params.run:q} --out {params.out:q} --data {params.data:q} {params.teacher}"
        " --device {params.device} --threads {threads} --gradients {params.gradients} --log {log:q}"
