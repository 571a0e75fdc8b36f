"""`answers.json`: what each row of a run's table answered to every test example.

Two runs are compared on the same examples (a paired difference), which their metrics alone do not
allow. What is read back gives the run's own metric again, to the last digit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.store.files import write_text

NAME = "answers.json"
_ARRAY = "array of numpy"
_MOST = 64_000_000  # letters: a map for each of many pictures is left out


def write(folder: Path, answers: Mapping[str, Sequence[Any]], references: Sequence[Any]) -> bool:
    """Whether they were written: what JSON cannot hold, or too much of it, is left out."""
    told = {"references": references, "answers": answers}
    try:
        text = json.dumps(told, default=_plain, allow_nan=False)
    except (TypeError, ValueError):
        return False
    if len(text) > _MOST:
        return False
    write_text(folder / NAME, text + "\n")
    return True


def read(folder: Path) -> tuple[dict[str, list[Any]], list[Any]] | None:
    """The answers by row of the table, and the references; None where the run left none."""
    if not (folder / NAME).exists():
        return None
    found = json.loads((folder / NAME).read_text(encoding="utf8"), object_hook=_array)
    return found["answers"], found["references"]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {_ARRAY: value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not for JSON")


def _array(value: dict[str, Any]) -> Any:
    return np.array(value[_ARRAY], dtype=value["dtype"]) if _ARRAY in value else value
