"""Words and how they are spoken, for the model with real weights where it is at hand."""

from __future__ import annotations

import json
from pathlib import Path

from places import shared

SPOKEN = {"cat": "kˈæt", "dog": "dˈɔɡ", "map": "mˈæp", "pot": "pˈɑt", "ten": "tˈɛn"}


def prepare(folder: Path) -> None:
    for name in ("data", "models"):
        (folder / name).mkdir()
    (folder / "models" / "g2p").symlink_to(shared("models", "bart-g2p-us"))
    rows = [{"source": word, "target": spoken} for word, spoken in SPOKEN.items()] * 6
    for name in ("data/words.jsonl", "new.jsonl"):
        lines = [json.dumps(row) + "\n" for row in (rows if "data" in name else rows[:2])]
        (folder / name).write_text("".join(lines), "utf8")
