"""`trimtab methods NAME`: all that is known of one method or recipe, a line a fact."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

from trimtab.capabilities import HEAD, cells
from trimtab.core.method import Method
from trimtab.core.registry import lookup


def of_method(name: str, row: dict[str, Any]) -> Iterator[str]:
    """Its docstring, every column of the table, and its options."""
    cls = lookup(name)
    yield from _told(cls)
    yield from (f"{column}: {cell}" for column, cell in _columns(name, row).items())
    yield f"paper: {row['paper'] or '–'}"
    package = cls.__module__.partition(".")[0]
    yield f"in Python: {package if package == 'trimtab' else cls.__module__}.{cls.__name__}"
    yield "options:" if row["options"] else "options: none"
    told = meanings(cls)
    for option, default in row["options"].items():
        yield f"  {option}: {default!r}{f'   {told[option]}' if option in told else ''}"


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
    for paragraph in _paragraphs(sys.modules[cls.__module__].__doc__ or cls.__doc__):
        yield paragraph if paragraph.startswith(" ") else " ".join(paragraph.split())
        yield ""


def meanings(cls: type[Method]) -> dict[str, str]:
    """Option -> the sentence of a docstring that says what it does, where one does: those of the
    class and of what it inherits from, then that of its file."""
    documents = [one.__doc__ for one in cls.__mro__ if issubclass(one, Method)]
    said = [
        one for text in (*documents, sys.modules[cls.__module__].__doc__) for one in _split(text)
    ]
    found = {}
    for field in dataclasses.fields(cls):
        named = [one for one in said if f"`{field.name}`" in one]
        first = [one for one in named if one.startswith(f"`{field.name}`")]
        if sentence := next(iter(first or named), None):
            found[field.name] = sentence.rstrip(";.")
    return found


def _split(text: str | None) -> Iterator[str]:
    """The sentences of a docstring, without its equations."""
    for paragraph in _paragraphs(text):
        if not paragraph.startswith(" "):
            yield from re.split(r"(?<=[.;])\s+", " ".join(paragraph.split()))


def _paragraphs(text: str | None) -> list[str]:
    return inspect.cleandoc(text or "").split("\n\n")
