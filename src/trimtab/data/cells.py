"""What a cell of each kind of text holds, and what the values of files say of it.

A cell comes as a string (of a delimited file), or as what JSON and Arrow have. Reading one gives
the cell, or a `ValueError` with the reason why there is none.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from trimtab.data.table import is_unicode

Places = Sequence[Path]
Parse = Callable[[str, Any, Places], Any]


@dataclass(frozen=True)
class Kind:
    """One kind of column.

    `parse(name, value, places)` reads a cell of the column `name`; `feature(cells)` is its type in
    a `datasets.Dataset`. `empty` stands in a column that is not required; where `may_be_empty`,
    nothing at all is a cell like others. `key` is what tells two rows apart, `labels` the names
    that a model learns; either is left out of kinds that have none.

    `agree(name, cell, other)` sees the cell beside that of the column of kind `beside`, and gives
    it back, or a `ValueError`. Where `slow`, cells are read side by side.
    """

    parse: Parse
    feature: Callable[[Sequence[Any]], Any]
    empty: Any = ""
    may_be_empty: bool = False
    key: Callable[[Any], Hashable] | None = None
    labels: Callable[[Any], tuple[str, ...]] | None = None
    beside: str | None = None
    agree: Callable[[str, Any, Any], Any] = lambda name, cell, other: cell
    slow: bool = False


# One text or number


def text(name: str, value: Any, places: Places = ()) -> str:
    match value:
        case str():
            if not is_unicode(value):
                raise ValueError("not UTF-8")
            return value
        case float() if value.is_integer():
            return str(int(value))
        case bool() | int() | float() | Decimal():
            return str(value)
    raise ValueError(f"the {name} is a {type(value).__name__}, not text")


def label(name: str, value: Any, places: Places = ()) -> str:
    return text(name, value).strip()


def number(name: str, value: Any, places: Places = ()) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"the {name} is a {type(value).__name__}, not a number")
    try:
        found = float(value)
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"the {name} is {short(value)}, not a finite number")
    return found


# Lists


def words(name: str, value: Any, places: Places = ()) -> list[str]:
    """A list, or a text that is parted at its blanks."""
    return [text(name, one) for one in listed(name, value, str.split)]


def tags(name: str, value: Any, places: Places = ()) -> list[str]:
    found = [label(name, one) for one in listed(name, value, str.split)]
    if "" in found:
        raise ValueError(f"the {name} have an empty one, number {found.index('') + 1}")
    return found


def labels(name: str, value: Any, places: Places = ()) -> list[str]:
    """A list, or a text that is parted at `;` or, where it has none, at `,`; each label once."""
    part = (lambda given: given.split(";" if ";" in given else ",")) if value else (lambda _: [])
    return list(filter(None, dict.fromkeys(label(name, one) for one in listed(name, value, part))))


def numbers(name: str, value: Any, places: Places = ()) -> list[float]:
    found = listed(name, value, lambda given: re.split(r"[\s,;]+", given.strip()))
    return [number(f"{name}, number {i},", one) for i, one in enumerate(found, start=1)]


def vectors(name: str, value: Any, places: Places = ()) -> list[list[float]]:
    """A list of lists of numbers, all of one length; of single numbers, each is such a list."""
    given = listed(name, value, lambda text: [text])
    found = [
        numbers(f"{name}, row {i}", one if isinstance(one, list | tuple) else [one])
        for i, one in enumerate(given, start=1)
    ]
    for i, one in enumerate(found, start=1):
        if not one or len(one) != len(found[0]):
            raise ValueError(f"the {name} have {len(found[0])} numbers in row 1, {len(one)} in {i}")
    return found


def listed(name: str, value: Any, part: Callable[[str], list[str]]) -> list[Any]:
    """A list, whether it came as one, as JSON, as Python prints it, or as a text to be parted."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return part(value)
        value = written(name, value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"the {name} is a {type(value).__name__}, not a list")
    return list(value)


def written(name: str, value: str) -> Any:
    """What a cell of a delimited file says in JSON, or as Python prints lists."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    raise ValueError(f"the {name} begin as a list in JSON and are none: {short(value)}")


def as_many(name: str, found: list[str], beside: list[str]) -> list[str]:
    if len(found) != len(beside):
        raise ValueError(f"{len(found)} {name} for {len(beside)} words")
    return found


# Chats

ROLES = ("system", "user", "assistant", "tool")
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "developer": "system"}


def messages(name: str, value: Any, places: Places = ()) -> list[dict[str, str]]:
    """A list of {"role", "content"}; {"from", "value"}, which other programs write, is read too."""
    return [_message(name, i, one) for i, one in enumerate(listed(name, value, list), start=1)]


def _message(name: str, place: int, given: Any) -> dict[str, str]:
    if not isinstance(given, dict):
        raise ValueError(f"message {place} of the {name} is a {type(given).__name__}, no object")
    role, content = given.get("role", given.get("from")), given.get("content", given.get("value"))
    role = _OTHER_NAMES.get(str(role), role)
    if role not in ROLES:
        raise ValueError(
            f"message {place} has the role {short(role)}, not one of {', '.join(ROLES)}"
        )
    if not isinstance(content, str):
        raise ValueError(f"message {place} has no text in its content")
    return {"role": role, "content": text(name, content)}


# Answers

_NOWHERE = -1  # it is not said where an answer stands


def answers(name: str, value: Any, places: Places = ()) -> list[dict[str, Any]]:
    """Several answers that are right, each {"text", "start"}: a text, a list of texts, or SQuAD's
    {"text": […], "answer_start": […]}, of which both are empty where there is no answer."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = written(name, value)
    if not isinstance(value, dict):
        given = listed(name, value, lambda one: [one]) if isinstance(value, str | list) else [value]
        return [{"text": text(name, one), "start": _NOWHERE} for one in given if one != ""]
    texts = listed(name, value.get("text", []), lambda one: [one])
    starts = value.get("answer_start", [_NOWHERE] * len(texts))
    if not isinstance(starts, list) or len(starts) != len(texts):
        raise ValueError(f"the {name} have {len(texts)} texts, and another number of answer_start")
    return [
        {"text": text(name, one), "start": int(number(f"answer_start of the {name}", at))}
        for one, at in zip(texts, starts, strict=True)
    ]


def short(value: Any) -> str:
    """A value fit for a message."""
    shown = repr(value).encode(errors="backslashreplace").decode()
    return shown if len(shown) <= 40 else shown[:39] + "…"


# Types in Arrow


def of(type_: str) -> Callable[[Sequence[Any]], Any]:
    def feature(cells: Sequence[Any]) -> Any:
        import datasets

        return datasets.Value(type_)

    return feature


def lists(type_: str) -> Callable[[Sequence[Any]], Any]:
    def feature(cells: Sequence[Any]) -> Any:
        import datasets

        return datasets.List(datasets.Value(type_))

    return feature


def matrices(cells: Sequence[Any]) -> Any:
    import datasets

    return datasets.List(datasets.List(datasets.Value("float64")))


def chats(cells: Sequence[Any]) -> Any:
    import datasets

    return datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})


def starting(cells: Sequence[Any]) -> Any:
    import datasets

    return datasets.List({"text": datasets.Value("string"), "start": datasets.Value("int64")})


KINDS = {
    "text": Kind(text, of("string"), key=str),
    "label": Kind(label, of("string"), labels=lambda cell: (cell,)),
    "words": Kind(words, lists("string"), empty=[], key=tuple),
    "tags": Kind(
        tags,
        lists("string"),
        empty=[],
        labels=lambda cell: tuple(dict.fromkeys(cell)),
        beside="words",
        agree=as_many,
    ),
    "labels": Kind(labels, lists("string"), empty=[], may_be_empty=True, labels=tuple),
    "number": Kind(number, of("float64"), empty=None),
    "numbers": Kind(numbers, lists("float64"), empty=[], key=tuple),
    "vectors": Kind(vectors, matrices, empty=[], key=json.dumps),
    "messages": Kind(messages, chats, empty=[], key=json.dumps),
    "answers": Kind(answers, starting, empty=[], may_be_empty=True),
}
