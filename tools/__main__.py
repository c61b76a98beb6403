"""Write the generated files, or with `--check` say which are stale: `python -m tools [--check]`."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from benchmarks import record
from tools import architecture, lock, pages, schemas

ROOT = Path(__file__).parents[1]


def generated() -> dict[str, str]:
    """Path -> content of every generated file."""
    made = (
        architecture.files(ROOT),
        lock.files(ROOT),
        pages.files(ROOT),
        record.files(ROOT),
        schemas.files(),
    )
    return {path: text for files in made for path, text in files.items()}


def stale() -> list[str]:
    """A diff for each file that differs from what would be generated, and what nothing generates."""
    fresh = generated()
    diffs = [f"{path}: a page of what is there no more" for path in pages.orphans(ROOT, fresh)]
    for path, content in fresh.items():
        file = ROOT / path
        old = file.read_text(encoding="utf-8") if file.exists() else ""
        if old != content:
            lines = difflib.unified_diff(
                old.splitlines(), content.splitlines(), path, f"{path} (fresh)", lineterm=""
            )
            diffs.append("\n".join(lines))
    return diffs


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tools", description="Write the generated files.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is stale")
    if parser.parse_args().check:
        problems = [*stale(), *lock.problems(ROOT)]
        if problems:
            print(
                "\n".join(problems),
                "\nStale: `make docs` or `make lock` mends it.",
                sep="\n",
                file=sys.stderr,
            )
        return bool(problems)
    fresh = generated()
    for path in pages.orphans(ROOT, fresh):
        (ROOT / path).unlink()
    for path, content in fresh.items():
        file = ROOT / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
