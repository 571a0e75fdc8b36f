"""What a benchmark has found, kept with the machine that it ran on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write(name: str, found: Mapping[str, Any]) -> None:
    """Into results/NAME.json."""
    from trimtab.tune import hardware  # which loads torch: contestants start without

    kept = {**found, "hardware": hardware.facts(), "versions": hardware.versions()}
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf8")
