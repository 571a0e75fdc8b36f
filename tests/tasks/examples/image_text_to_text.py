"""Pictures of three colours with a question and an answer."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_pairs


def prepare(folder: Path) -> None:
    tiny_pairs.write_llava(folder / "models" / "llava")
    file = tiny_pairs.pictures(folder / "data", "asked.jsonl", count=24)
    rows = [json.loads(line) for line in file.read_text("utf8").splitlines()]
    asked = [
        {
            "image": str(folder / "data" / row["image"]),
            "prompt": "what is it ?",
            "answer": row["text"],
        }
        for row in rows
    ]
    lines = "".join(json.dumps(row) + "\n" for row in asked)
    for name in ("data/asked.jsonl", "new.jsonl"):
        (folder / name).write_text(lines, "utf8")
