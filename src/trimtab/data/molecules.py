"""Molecules in SMILES (Weininger 1988), read by RDKit, which says what is wrong with one.

A cell is the text as it was given. Two notations of one molecule are the same row: rows are told
apart by RDKit's canonical SMILES.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trimtab.core.errors import InputError
from trimtab.data.cells import Kind, Places, of, short, text

_STAMP = re.compile(r"^\[[\d:]+\] (SMILES Parse Error: )?")
_PLACE = re.compile(r"around position (\d+)")
_ECHO = re.compile(r"( for input:| while parsing:).*$")


def read_smiles(name: str, value: Any, places: Places = ()) -> str:
    given = text(name, value).strip()
    if len(given.split()) > 1:
        raise ValueError(f"the {name} {short(given)} has a blank: a cell is one molecule")
    if given and _parsed(given) is None:
        raise ValueError(f"invalid SMILES {short(given)}: {_reason(given)}")
    return given


def canonical(smiles: str) -> str:
    """RDKit's own notation of the molecule."""
    found: str = _chemistry().MolToSmiles(_parsed(smiles))
    return found


def _parsed(smiles: str) -> Any:
    """RDKit's molecule, or none."""
    chemistry = _chemistry()
    from rdkit import rdBase

    with rdBase.BlockLogs():
        return chemistry.MolFromSmiles(smiles)


def _chemistry() -> Any:
    try:
        from rdkit import Chem
    except ImportError as error:
        raise InputError("molecules are read with RDKit: pip install 'trimtab[tasks]'") from error
    return Chem


def _reason(smiles: str) -> str:
    """What RDKit says of one that it cannot read: the first line, and where."""
    with _heard() as said:
        _chemistry().MolFromSmiles(smiles)
    lines = [_STAMP.sub("", line) for line in said]
    place = next((found[1] for line in lines if (found := _PLACE.search(line))), None)
    first = _ECHO.sub("", lines[0]) if lines else "RDKit cannot read it"
    return f"{first} around character {place}" if place else first


@contextmanager
def _heard() -> Iterator[list[str]]:
    """The lines that RDKit writes meanwhile, which else go to standard error."""
    from rdkit import rdBase

    said: list[str] = []
    logger, ear = logging.getLogger("rdkit"), logging.Handler()
    ear.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    handlers, passing = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [ear], False
    rdBase.LogToPythonLogger()
    try:
        yield said
    finally:
        rdBase.LogToCppStreams()
        logger.handlers, logger.propagate = handlers, passing


KINDS = {"smiles": Kind(read_smiles, of("string"), key=canonical)}
