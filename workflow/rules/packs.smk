rule train_pack:
    input:
        needs_of_pack,
    output:
        marker(RESULTS, "{pack}"),
    log:
        f"{RESULTS}/logs/packs/{{pack}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/pack-{{pack}}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda w: sum(map(threads_of, PACKS.members[w.pack]))
    resources:
        **jobs(
            "train_pack",
            gpu=lambda w: gpus_of(PACKS.members[w.pack][0]),
            mem_mb=lambda w: 4000 * len(PACKS.members[w.pack]),
            runtime=240,
            runs=lambda w: PACKS.members[w.pack],
        ),
        attempt=lambda w, attempt: attempt,
    params:
        runs=lambda w, input: " ".join(PACKS.members[w.pack]),
        plan=lambda w, input: PLAN_FILE,
        results=lambda w, input: RESULTS,
        device=lambda w, input: CONFIG.device,
        each=lambda w, input: CONFIG.threads,
        attempts=lambda w, input: attempts(),
    message:
        "train pack {wildcards.pack}: {params.runs}"
    shell:
        "kdpipe pack {params.runs} --plan {params.plan:q} --results {params.results:q} --device {params.device}"
        " --threads {params.each} --cpus {threads} --marker {output:q} --attempt {resources.attempt}"
        " --attempts {params.attempts} > {log:q} 2>&1"
