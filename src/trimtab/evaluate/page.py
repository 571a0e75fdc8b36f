"""`eval.json` and `eval.html`: what an evaluation found, for machines and for people. The page is
complete in itself, as a run's report is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.compare import numbers
from trimtab.compare.report import is_finite, scale
from trimtab.core.errors import InputError
from trimtab.evaluate.bootstrap import Interval
from trimtab.evaluate.tables import NAMES, Shown, Signed, read, tables
from trimtab.store.files import write_json, write_text


def write(result: Mapping[str, Any], run: str, folder: Path) -> None:
    """Both files, in a folder that is made where it is not there."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file, where a folder is expected")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "eval.json", dict(result))
    write_text(folder / "eval.html", render(result, run))


def render(result: Mapping[str, Any], run: str) -> str:
    """The page as text; the same result gives the same page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parent / "compare"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metric": numbers.metric, "bounds": numbers.bounds}
    environment.tests["finite"] = lambda one: isinstance(one, Interval) and is_finite(one)
    environment.tests["signed"] = lambda one: isinstance(one, Signed)
    environment.tests["interval"] = lambda one: isinstance(one, Interval)
    shown = list(tables(result))
    rows = [(NAMES[row], read(result[key])) for row, key in _ROWS.items() if key in result]
    return environment.get_template("eval.html.j2").render(
        result=result,
        run=run,
        rows=rows,
        gains=[(NAMES[row], read(result[key])) for row, key in _GAINS.items() if key in result],
        tables=[(one, _scale(one)) for one in shown],
        reliability=_reliability(result),
    )


_ROWS = {"base": "base", "head": "head", "adapted": "value"}
_GAINS = {"base": "gain_over_base", "head": "gain_over_head"}


def _scale(one: Shown) -> Any:
    """The axis of a table's pictures."""
    found = [cell for row in one.rows for cell in row[1:3] if isinstance(cell, Interval)]
    return scale(found) if one.drawn else None


def _reliability(result: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    if "calibration" not in result:
        return []
    found = result["calibration"]["reliability"]
    return [(NAMES[row], found[row]) for row in result["calibration"]["rows"]]
