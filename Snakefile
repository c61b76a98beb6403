# kdpipe: data -> teachers -> sampled checkpoints -> students -> measures -> tables -> report.
# What to run is in config/config.yaml; try `snakemake -n`, then `snakemake --workflow-profile workflow/profiles/local`.
configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/teachers.smk"
include: "workflow/rules/banks.smk"
include: "workflow/rules/students.smk"
include: "workflow/rules/packs.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/benches.smk"
include: "workflow/rules/reports.smk"


# Snakemake asks each function what it takes at every job; worked out each time, that is a tenth of a dry run
for rule_ in workflow.rules:
    for asked in (*rule_.input, *rule_.params, *rule_.resources.values(), Resource.evaluate):
        for wrapper in ("_file", "callable", "_evaluator"):  # of ancient(...), and of resources
            asked = getattr(asked, wrapper, None) or asked
        if inspect.isfunction(asked) and not hasattr(asked, FUNC_OVERWRITE_PARAMS_ATTR):
            overwrite_function_params(asked, inspect.signature(asked).parameters)
# for each text of each job it copies all names that the rules know, another tenth; texts use those of their rule
workflow.modifier.globals = {"config": config}


localrules:  # seconds each, or on the network: where Snakemake runs, also when jobs go to a cluster
    all,
    prefetch,
    prepare_data,
    evaluate_study,
    choose_checkpoint,
    render_study,
    draw_diagram,
    draw_plot,
    render_report,


rule all:
    default_target: True
    input:
        [f"{RESULTS}/studies/{study}/table.html" for study in PLAN.studies],
        f"{RESULTS}/report/index.html",


onstart:
    PACKS.write(Results(Path(RESULTS)), workflow.execution_settings.retries)
    BANKS.write(Results(Path(RESULTS)))
    follow()  # ends with this process


onsuccess:
    shell(SYNC)
    for study in PLAN.studies:
        shell("kdpipe table --show {study} --plan {PLAN_FILE} --results {RESULTS}")


onerror:
    shell(SYNC)
