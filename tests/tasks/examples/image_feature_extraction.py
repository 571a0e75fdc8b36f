"""Pictures of three colours with labels."""

from __future__ import annotations

from pathlib import Path

import tiny_pairs


def prepare(folder: Path) -> None:
    tiny_pairs.write(folder / "models" / "vit", "vit")
    tiny_pairs.pictures(folder / "data", "labelled.jsonl", count=60, key="label")
