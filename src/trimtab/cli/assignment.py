"""`name=value` on the command line."""

from __future__ import annotations

from typing import Any

from trimtab.core.errors import InputError


def assignment(text: str, key: str) -> tuple[str, Any]:
    """`name=value`, the value read as YAML reads it; of `--column` as it is written."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        whole = f"; one rank everywhere is --rank {text}" if key == "ranks" else ""
        raise InputError(f"--{key.replace('_', '-')} takes name=value, not {text!r}{whole}")
    if key == "column":
        return name, value
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--{key.replace('_', '-')} {text}: {value!r} is no value") from None
