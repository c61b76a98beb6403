"""HTML pages from the templates beside this file; everything a page needs stands in the page."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent / "templates"


def page(template: str, **values: Any) -> str:
    """A template filled in; every value is escaped unless the template says otherwise."""
    return _environment().get_template(template).render(**values)


def embedded_json(value: Any) -> str:
    """JSON that is safe within a `<script>` element, whatever text it holds."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def embedded_svg(path: Path) -> str:
    """An SVG file as a `data:` address, so that no two images on a page share element ids."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


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
