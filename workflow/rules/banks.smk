rule bank_logits:
    input:
        data=lambda w: f"{RESULTS}/data/{bank_of(w).data}/meta.json",
        teacher=lambda w: teacher_stamps(bank_of(w).bank.name),
    output:
        bank_marker(RESULTS, "{bank}"),
    log:
        f"{RESULTS}/logs/banks/{{bank}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{bank}}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda w: CONFIG.threads * batches_at_once(w)
    resources:
        **jobs(
            "bank_logits",
            gpu=CONFIG.gpus,
            mem_mb=4000,
            runtime=240,
            runs=lambda w: [bank_of(w).bank.name],
        ),
    params:
        bank=lambda w, input: canonical(bank_of(w).bank.model_dump(mode="json")),
        out=lambda w, input: f"{RESULTS}/banks/{bank_of(w).bank.name}",
        data=subpath(input.data, parent=True),
        teacher=lambda w, input: shlex.join(weights_of_teacher(bank_of(w).bank.name)),
        device=lambda w, input: CONFIG.device,
        each=lambda w, input: CONFIG.threads,
    message:
        "bank {wildcards.bank}"
    shell:
        "kdpipe bank --bank {params.bank:q} --out {params.out:q} --data {params.data:q} {params.teacher}"
        " --device {params.device} --threads {params.each} --cpus {threads} --marker {output:q} 2>&1 | tee {log:q}"
