"""The rows, a module for each field; each states `ROWS`, and where it has its own, `DATA`: what
makes a data set of the shared ones, and `MODELS`: what makes or pre-trains a small model.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

from row import Make, Row

sys.path.append(str(Path(__file__).parents[2] / "quality"))  # for what both tables use
_AREAS = [importlib.import_module(f"rows.{one.name}") for one in pkgutil.iter_modules(__path__)]


def _joined(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for area in _AREAS:
        own = getattr(area, name, {})
        if twice := set(own) & set(found):
            raise ValueError(f"{name} has {sorted(twice)} twice")
        found.update(own)
    return found


ROWS: dict[str, Row] = _joined("ROWS")
DATA: dict[str, Make] = _joined("DATA")
MODELS: dict[str, Make] = _joined("MODELS")
