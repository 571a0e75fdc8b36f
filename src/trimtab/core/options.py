"""The options of a method, its hyper-parameters, each with what it means."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from trimtab.core.method import Method

T = TypeVar("T")

_MEANING = "meaning"


@dataclass(frozen=True)
class Option:
    """One hyper-parameter of a method: `type` as its class states it."""

    name: str
    type: str
    default: Any
    meaning: str


def option(default: T, meaning: str) -> T:
    """A field of a method: its default, and what it means, with the paper's symbol and unit.

    A class below may state another default alone: the meaning is inherited.
    """
    return dataclasses.field(default=default, metadata={_MEANING: meaning})


def options(cls: type[Method]) -> list[Option]:
    """The options of a method: its own first, then those that it shares with its kind.

    An option of which no class says what it means has an empty meaning.
    """
    fields = {one.name: one for one in dataclasses.fields(cls)}
    stated = dict.fromkeys(name for base in cls.__mro__ for name in inspect.get_annotations(base))
    return [
        Option(name, str(fields[name].type), fields[name].default, _meaning(cls, name))
        for name in stated
        if name in fields
    ]


def _meaning(cls: type[Method], name: str) -> str:
    """What the nearest class says that says it."""
    for base in filter(dataclasses.is_dataclass, cls.__mro__):
        for one in dataclasses.fields(base):
            if one.name == name and _MEANING in one.metadata:
                return str(one.metadata[_MEANING])
    return ""
