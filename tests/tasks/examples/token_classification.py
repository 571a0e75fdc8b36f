"""Sentences about people and places."""

from __future__ import annotations

import json
from pathlib import Path

PEOPLE = (("Ada", "Lovelace"), ("Alan", "Turing"), ("Grace", "Hopper"), ("Mary", "Somerville"))
PLACES = ("London", "Vienna", "Princeton", "Edinburgh")


def prepare(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "people").mkdir()
    rows = [
        {
            "tokens": [*person, "lived", "in", place],
            "tags": ["B-person", "I-person", "O", "O", "B-place"],
        }
        for person in PEOPLE
        for place in PLACES
    ]
    for split, part in (("train", rows[:10]), ("validation", rows[10:13]), ("test", rows[13:])):
        written(part, folder / "data" / "people" / f"{split}.jsonl")
    written([{"tokens": ["Ada", "wrote"]}], folder / "new.jsonl")


def written(rows: list[dict[str, list[str]]], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
