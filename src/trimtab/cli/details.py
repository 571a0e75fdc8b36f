"""`trimtab methods NAME`: all that is known of one method or recipe, a line a fact."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from trimtab.capabilities import HEAD, cells
from trimtab.core.method import Method
from trimtab.core.options import options
from trimtab.core.registry import lookup


def of_method(name: str, row: dict[str, Any]) -> Iterator[str]:
    """Its docstring, every column of the table, and its options."""
    cls = lookup(name)
    yield from _told(cls)
    yield from (f"{column}: {cell}" for column, cell in _columns(name, row).items())
    yield f"paper: {row['paper'] or '–'}"
    package = cls.__module__.partition(".")[0]
    yield f"in Python: {package if package == 'trimtab' else cls.__module__}.{cls.__name__}"
    stated = options(cls)
    yield "options:" if stated else "options: none"
    yield from (f"  {one.name}: {one.default!r}   {one.meaning}".rstrip() for one in stated)


def _columns(name: str, row: dict[str, Any]) -> dict[str, str]:
    """Those of the table, without what is there to save room."""
    columns = dict(zip(HEAD, cells(name, row), strict=True))
    columns["quantised bases"] = ", ".join(row["quantised"]) or "–"
    if row["parameters"] is not None:
        columns["parameters"] = f"{row['parameters']:,} ({row['parameters_at']})"
    return {
        column: cell for column, cell in columns.items() if not column.startswith("parameters ")
    }


def of_recipe(name: str, row: dict[str, Any]) -> Iterator[str]:
    yield f"recipe: {name}"
    yield f"what it is: {row['about']}"
    yield f"method: {row['method'] or 'any'}"
    yield f"use: {row['use']}"
    yield f"module: {row['module']}"
    yield f"paper: {row['paper']}"


def _told(cls: type[Method]) -> Iterator[str]:
    """What the method's file says of it: equations as they are, each paragraph as one line."""
    told = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or cls.__doc__ or "")
    for paragraph in told.split("\n\n"):
        yield paragraph if paragraph.startswith(" ") else " ".join(paragraph.split())
        yield ""
