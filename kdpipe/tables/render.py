"""Tables as files (CSV, Markdown, LaTeX, HTML) and on the terminal; the same inputs give the same bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.core.errors import UnknownNameError
from kdpipe.core.files import write_text
from kdpipe.core.paths import Results
from kdpipe.core.plot import Verdict
from kdpipe.plan.plan import Plan, PlannedStudy
from kdpipe.tables.blocks import Block, Entry, pair_title
from kdpipe.tables.collect import frame
from kdpipe.tables.layout import Layout, Told, lay_out
from kdpipe.tables.pages import FOLDER, page

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, RenderableType
    from rich.table import Table

_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "α": r"$\alpha$",
    "…": r"\dots{}",
    "–": r"\textendash{}",
    "\n": " ",
}
COLUMNS = [
    "study",
    "scale",
    "part",
    "row",
    "recipe",
    "teacher",
    "student",
    "dataset",
    "pair",
    "epoch",
    "rule",
    "metric",
    "mean",
    "std",
    "n",
    "planned",
    "missing",
    "collapsed",
    "mark",
    "text",
    "note",
    "ci_low",
    "ci_high",
    "images_low",
    "images_high",
    "rank",
    "baseline",
    "n_pairs",
    "gain",
    "gain_low",
    "gain_high",
    "effect",
    "p",
    "p_exact",
    "p_holm",
    "printed",
    "printed_std",
    "difference",
    "difference_in_std",
    "printed_note",
    "runs",
    "ids",
]
FORMATS = ("csv", "markdown", "latex", "html")
VERDICT = ("statement", "where", "setting", "verdict", "numbers")
_LATEX_STYLES = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}
_MARKDOWN_STYLES = {"best": "**%s**", "second": "<u>%s</u>"}
_TERMINAL_STYLES = {"best": "bold green", "second": "underline"}


def render(study: PlannedStudy, plan: Plan, results: Results) -> list[Path]:
    """Write a study's tables from whatever results are there.

    Args:
        study: the study.
        plan: the plan that the study is part of.
        results: the results folder; files go to `results/studies/<study>/`.

    Returns:
        The files written: table.csv, .md, .tex, .html, seeds.csv and, where the study has benches or claims,
        verdicts.csv.

    Raises:
        ResultsError: a result cannot be read, or the folder cannot be written.
    """
    layout = lay_out(study, plan, results)
    folder = results.study(study.name)
    told = study.benches or study.study.claims
    texts = {
        "table.csv": as_text("csv", study, layout),
        "seeds.csv": _csv(frame(layout.measurements)),
        "table.md": as_text("markdown", study, layout),
        "table.tex": as_text("latex", study, layout),
        "table.html": as_text("html", study, layout),
        **({"verdicts.csv": _csv(verdicts(study, layout))} if told else {}),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def as_text(form: str, study: PlannedStudy, layout: Layout) -> str:
    """A study's tables in one format.

    Raises:
        UnknownNameError: `form` is none of `FORMATS`.
    """
    if form == "csv":
        return _csv(aggregated(study, layout))
    if form == "markdown":
        return markdown(layout)
    if form == "latex":
        return latex(layout, study.name)
    if form == "html":
        return html(layout)
    raise UnknownNameError.of("format", form, FORMATS)


def aggregated(study: PlannedStudy, layout: Layout) -> pd.DataFrame:
    """The tables as one tidy frame: a row per shown number, with its runs' folders and ids."""
    import pandas as pd

    base = study.study.baseline
    rows = [
        {"study": study.name, "scale": study.scale, **_tidy(m, e, layout), **_statistics(e, base)}
        for m, e in layout.entries
    ]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"epoch": "Int64", "n_pairs": "Int64"})


def verdicts(study: PlannedStudy, layout: Layout) -> pd.DataFrame:
    """What is said of each statement of a paper, one row each."""
    import pandas as pd

    rows = [
        {"study": study.name, "figure": told.name, **asdict(verdict)}
        for told in layout.told
        for verdict in told.verdicts
    ]
    return pd.DataFrame(rows, columns=["study", "figure", *(f.name for f in fields(Verdict))])


def _tidy(metric: str, entry: Entry, layout: Layout) -> dict[str, Any]:
    place, summary = entry.place, entry.summary
    return {
        "part": place.part,
        "row": place.row,
        "recipe": place.recipe,
        "teacher": place.teacher,
        "student": place.student,
        "dataset": place.dataset,
        "pair": pair_title(place.teacher, place.student),
        "epoch": place.epoch,
        "rule": place.rule or "",
        "metric": metric,
        "mean": summary.mean,
        "std": summary.std,
        "n": summary.n,
        "planned": summary.planned,
        "missing": summary.missing,
        "collapsed": " ".join(map(str, summary.collapsed)),
        "mark": entry.mark or "",
        "text": entry.text,
        "note": layout.footnotes[entry.note - 1] if entry.note else "",
        "runs": " ".join(summary.runs),
        "ids": " ".join(summary.ids),
    }


def _statistics(entry: Entry, baseline: str) -> dict[str, Any]:
    """Intervals, the comparison with the baseline, and the printed number."""
    summary, comparison, printed = entry.summary, entry.comparison, entry.printed
    found: dict[str, Any] = {"rank": entry.rank}
    found["ci_low"], found["ci_high"] = summary.interval or (None, None)
    found["images_low"], found["images_high"] = summary.resampled or (None, None)
    if comparison:
        found |= {"baseline": baseline, "n_pairs": comparison.n, "gain": comparison.mean}
        found["gain_low"], found["gain_high"] = comparison.interval or (None, None)
        found |= {name: getattr(comparison, name) for name in ("effect", "p", "p_exact", "p_holm")}
    if printed:
        found |= {"printed": printed.value, "printed_std": printed.std, "printed_note": printed.note}
        found |= {"difference": printed.difference, "difference_in_std": printed.in_std}
    return found


def _csv(table: pd.DataFrame) -> str:
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n")
    return text.getvalue()


def markdown(layout: Layout) -> str:
    """The tables in Markdown; column headings hold pair and recipe, as Markdown cannot span columns."""
    parts = [f"# {markdown_escape(layout.title)}"]
    for block in (b.printed() for b in layout.tables):
        heads = [
            block.corner,
            *("<br>".join(filter(None, (c.group, c.label))) for c in _escaped_columns(block)),
        ]
        rows = [heads, ["---", *["---:"] * len(block.columns)]]
        rows += [
            [markdown_escape(line.label), *(_markdown_cell(entry, block.pale) for entry in line.entries)]
            for line in block.lines
        ]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts += [f"## {markdown_escape(block.title)}", table, *map(markdown_escape, block.notes)]
    for told in layout.told:
        rows = [list(VERDICT), ["---"] * len(VERDICT)]
        rows += [[markdown_escape(word) for word in _words(v)] for v in told.verdicts]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts += [f"## {markdown_escape(told.title)}", markdown_escape(told.caption), table]
    if layout.footnotes:
        parts.append(
            "\n".join(f"<sup>{i}</sup> {markdown_escape(n)}<br>" for i, n in enumerate(layout.footnotes, 1))
        )
    parts += [markdown_escape(note) for note in layout.notes]
    return "\n\n".join(parts) + "\n"


def _words(verdict: Verdict) -> tuple[str, ...]:
    """A verdict as the cells of a row."""
    return verdict.claim, verdict.source, verdict.setting, verdict.verdict, verdict.numbers


def _escaped_columns(block: Block) -> Iterable[Any]:
    return (type(c)(markdown_escape(c.group), markdown_escape(c.label)) for c in block.columns)


def _markdown_cell(entry: Entry, pale: bool) -> str:
    style = "*%s*" if pale and entry.text else _MARKDOWN_STYLES[entry.mark] if entry.mark else "%s"
    return style % markdown_escape(entry.text) + (f"<sup>{entry.note}</sup>" if entry.note else "")


def markdown_escape(text: str) -> str:
    """`text` so that Markdown (also within a table) shows it as it is, on one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(text.split()))


def latex(layout: Layout, name: str) -> str:
    """The tables in LaTeX, to be included in a document; they need the packages booktabs and graphicx.

    Args:
        layout: the study's tables.
        name: name of the study, for the tables' labels.
    """
    tables = [
        _latex_table(layout, block.printed(), f"tab:{name}-{i}") for i, block in enumerate(layout.tables, 1)
    ]
    tables += [_latex_verdicts(told, f"tab:{name}-{told.name}") for told in layout.told]
    return "% needs \\usepackage{booktabs,graphicx}\n" + "\n".join(tables)


def _latex_verdicts(told: Told, label: str) -> str:
    widths = "p{.3\\linewidth}p{.12\\linewidth}p{.1\\linewidth}lp{.3\\linewidth}"
    rows = (_latex_row(map(latex_escape, _words(verdict))) for verdict in told.verdicts)
    return _latex_float(
        told.title, label, widths, [_latex_row(VERDICT), r"\midrule", *rows], latex_escape(told.caption)
    )


def _latex_table(layout: Layout, block: Block, label: str) -> str:
    used = sorted({e.note for line in block.lines for e in line.entries if e.note})
    notes = [f"$^{{{i}}}$ {latex_escape(layout.footnotes[i - 1])}." for i in used]
    own = (*block.notes, layout.scale) if block.notes else layout.notes
    notes += [latex_escape(note) for note in own]
    groups, rules, start = [], [], 2
    for title, span in block.groups:
        groups.append(rf"\multicolumn{{{span}}}{{c}}{{{latex_escape(title)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
        start += span
    rows = [_latex_row(["", *groups]), " ".join(rules)] if any(title for title, _ in block.groups) else []
    rows.append(_latex_row(latex_escape(text) for text in [block.corner, *(c.label for c in block.columns)]))
    rows.append(r"\midrule")
    for above, line in zip([None, *block.lines], block.lines, strict=False):
        if above and above.kind != line.kind:
            rows.append(r"\midrule")
        cells = (_latex_cell(entry, block.pale) for entry in line.entries)
        rows.append(_latex_row([latex_escape(line.label), *cells]))
    title = f"{layout.title}: {block.title}"
    return _latex_float(title, label, "l" + "r" * len(block.columns), rows, "\n".join(notes))


def _latex_float(title: str, label: str, columns: str, rows: Iterable[str], notes: str) -> str:
    """A table with its caption and notes, made smaller where it is wider than the text."""
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{latex_escape(title)}}}",
            rf"\label{{{latex_label(label)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            "",
            rf"\smallskip\parbox{{\linewidth}}{{\footnotesize {notes}}}",
            r"\end{table}",
            "",
        ]
    )


def _latex_row(cells: Iterable[str]) -> str:
    text = " & ".join(cells)
    # At the start of a row, the end of the one above would take these for its own.
    guard = "{}" if text.startswith(("[", "*")) else ""
    return guard + text + r" \\"


def _latex_cell(entry: Entry, pale: bool) -> str:
    style = r"\textit{%s}" if pale else _LATEX_STYLES[entry.mark] if entry.mark else "%s"
    note = rf"\textsuperscript{{{entry.note}}}" if entry.note else ""
    return style % latex_escape(entry.text) + note


def latex_escape(text: str) -> str:
    """`text` so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(c, c) for c in text)


def latex_label(text: str) -> str:
    """`text` reduced to what a LaTeX label may hold."""
    return re.sub(r"[^A-Za-z0-9:.-]+", "-", text)


def html(layout: Layout) -> str:
    """The tables as one standalone page, whose cells link to the pages of their runs in the report."""
    script = (FOLDER / "table.js").read_bytes()
    allowed = base64.b64encode(hashlib.sha256(script).digest()).decode()
    return page("table.html", layout=layout, script_hash=allowed)


def terminal_table(study: PlannedStudy, plan: Plan, results: Results, console: Console | None = None) -> None:
    """Print a study's tables; a pair has a table of its own, so that they fit a terminal.

    Args:
        study: the study.
        plan: the plan that the study is part of.
        results: the results folder.
        console: where to; default: standard output.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    for part in _terminal_parts(lay_out(study, plan, results)):
        console.print(part)


def _terminal_parts(layout: Layout) -> Iterable[RenderableType]:
    from rich.text import Text

    yield Text(f"\n{layout.title}", style="bold")
    for block in (b.printed() for b in layout.tables if not b.detail):
        yield Text(f"\n{block.title}", style="italic")
        groups = [None] if block.series else [title for title, _ in block.groups]
        for group in groups:
            yield _terminal_table(block, group)
        for note in block.notes:
            yield Text(note, style="dim")
    for told in layout.told:
        yield Text(f"\n{told.title}", style="italic")
        yield _terminal_verdicts(told)
    for i, note in enumerate(layout.footnotes, 1):
        yield Text(f"[{i}] {note}")
    for note in layout.notes:
        yield Text(note, style="dim")


def _terminal_verdicts(told: Told) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for head in ("verdict", "statement", "numbers"):
        table.add_column(head, overflow="fold")
    for v in told.verdicts:
        setting = f"{v.setting}: " if v.setting else ""
        table.add_row(Text(v.verdict), Text(f"{setting}{v.claim} ({v.source})"), Text(v.numbers))
    return table


def _terminal_table(block: Block, group: str | None) -> Table:
    """The columns of one group (None: all, headed by their groups) as a rich table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = [i for i, c in enumerate(block.columns) if group in (None, c.group)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, title=group and Text(group), title_justify="left")
    table.add_column(block.corner, overflow="fold")
    for i in shown:
        column = block.columns[i]
        head = column.label if group else f"{column.group}\n{column.label}"
        table.add_column(Text(head), justify="right", overflow="fold")
    for line in block.lines:
        cells = [_terminal_cell(line.entries[i], block.pale) for i in shown]
        table.add_row(Text(line.label), *cells)
    return table


def _terminal_cell(entry: Entry, pale: bool) -> RenderableType:
    from rich.text import Text

    style = "dim" if pale else _TERMINAL_STYLES[entry.mark] if entry.mark else ""
    text = Text(entry.text, style=style)
    return text.append(f" [{entry.note}]", style="dim") if entry.note else text
