# kdpipe: data -> teachers -> sampled checkpoints -> students -> measures -> tables -> report.
# What to run is in config/config.yaml; try `snakemake -n`, then `snakemake --workflow-profile workflow/profiles/local`.
configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/teachers.smk"
include: "workflow/rules/students.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/benches.smk"
include: "workflow/rules/reports.smk"


localrules:
    all,
    prepare_data,
    render_report,


rule all:
    default_target: True
    input:
        [f"{RESULTS}/studies/{study}/table.html" for study in PLAN.studies],
        f"{RESULTS}/report/index.html",


onstart:
    follow()  # ends with this process


onsuccess:
    shell(SYNC)
    for study in PLAN.studies:
        shell("kdpipe table --show {study} --plan {PLAN_FILE} --results {RESULTS}")


onerror:
    shell(SYNC)
