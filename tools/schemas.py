"""JSON schemas of the configuration files, for editors and for the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from kdpipe.plan.config import Config, DatasetFile, ProtocolFile
from kdpipe.plan.study import Study

Schema = dict[str, Any]


def files() -> dict[str, str]:
    """Path -> schema."""
    return {f"config/schemas/{name}.json": text(model, adapt) for name, (model, adapt) in SCHEMAS.items()}


def text(model: type[BaseModel], adapt: Callable[[Schema], None]) -> str:
    """The JSON schema of a model as `adapt` changes it in place."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    adapt(schema)
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def as_it_is(schema: Schema) -> None:
    """Change nothing."""


def as_written(schema: Schema) -> None:
    """Allow in a protocol file what its reader takes apart: values with sources, short augmentations."""
    settings = schema["$defs"]["Protocol"]["properties"]
    short = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": {"type": "object"},
    }
    settings["augmentation"]["items"] = {
        "anyOf": [{"type": "string"}, short, settings["augmentation"]["items"]],
    }
    for key, value in settings.items():
        sourced = {
            "type": "object",
            "properties": {"value": value, "source": {"type": "string"}},
            "required": ["value"],
            "additionalProperties": False,
        }
        settings[key] = {"anyOf": [value, sourced]}


SCHEMAS: dict[str, tuple[type[BaseModel], Callable[[Schema], None]]] = {
    "config": (Config, as_it_is),
    "dataset": (DatasetFile, as_it_is),
    "protocol": (ProtocolFile, as_written),
    "study": (Study, as_it_is),
}
