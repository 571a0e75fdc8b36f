"""Pictures of three colours with captions."""

from __future__ import annotations

from pathlib import Path

import tiny_pairs


def prepare(folder: Path) -> None:
    tiny_pairs.write(folder / "models" / "clip", "clip")
    tiny_pairs.pictures(folder / "data", "shown.jsonl", count=24)
    rows = (folder / "data" / "shown.jsonl").read_text("utf8")
    (folder / "new.jsonl").write_text(rows.replace('"image": "', '"image": "data/'), "utf8")
