"""HTML pages from the templates beside this file, and folders of them that replace older ones."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kdpipe.core.files import write_error

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent / "templates"


def page(template: str, **values: Any) -> str:
    """A template filled in; every value is escaped unless the template says otherwise."""
    return _environment().get_template(template).render(**values)


def macro(template: str, name: str, *values: Any) -> str:
    """What a macro of a template makes of values: markup that a page takes as it is."""
    made = getattr(_environment().get_template(template).module, name)(*values)
    assert isinstance(made, str)
    return made


def embedded_json(value: Any) -> str:
    """JSON that is safe within a `<script>` element, whatever text it holds."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        if character in text:
            text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def script(variable: str, value: Any) -> str:
    """A script that sets one variable: how a page that is opened from a disk gets at data of its own."""
    return f"var {variable} = {embedded_json(value)};\n"


class Site:
    """A folder of pages, built beside the old one, which it replaces when all is written.

    So a page that is wanted no more goes, and a rendering that fails leaves the old pages as they were.
    Pages can be made again at any time, so they are not flushed to disk one by one.

    Args:
        root: the folder; what lies in it under other names stays.
        first: the page that is put there last.
        folders: those that the site consists of, wanted or not.
    """

    def __init__(self, root: Path, first: str, folders: tuple[str, ...]) -> None:
        self.root, self.first, self.folders = root, first, folders
        self.building = root / ".building"

    def __enter__(self) -> Site:
        try:
            shutil.rmtree(self.building, ignore_errors=True)
            for folder in self.folders:
                (self.building / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.root, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        except OSError as failed:
            raise write_error(self.root, failed) from failed
        finally:
            shutil.rmtree(self.building, ignore_errors=True)

    def write(self, name: str, text: str) -> None:
        """Write the page `name`, a path within the site."""
        try:
            (self.building / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise write_error(self.root / name, error) from error

    def copy(self, source: Path, name: str) -> None:
        """Copy a file to `name`, a path within the site."""
        target = self.building / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as error:
            raise write_error(self.root / name, error) from error

    def _publish(self) -> None:
        for new in sorted(self.building.iterdir(), key=lambda path: path.name == self.first):
            old = self.root / new.name
            if old.is_dir():
                shutil.rmtree(old)
            new.replace(old)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["file"] = lambda name: Markup((FOLDER / name).read_text(encoding="utf-8"))
    return environment
