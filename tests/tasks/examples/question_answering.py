"""Questions about who wrote what."""

from __future__ import annotations

import json
from pathlib import Path

BOOKS = {
    "Emma": "Jane Austen",
    "Middlemarch": "George Eliot",
    "Villette": "Charlotte Bronte",
    "Cranford": "Elizabeth Gaskell",
}


def prepare(folder: Path) -> None:
    (folder / "data" / "asked").mkdir(parents=True)
    rows = [
        {
            "question": f"Who wrote {book}?",
            "context": f"In {year}, {author} had written {book}, of which much was said.",
            "answer": author,
        }
        for year in (1810, 1811)
        for book, author in BOOKS.items()
    ]
    for split, part in (("train", rows[:4]), ("validation", rows[4:6]), ("test", rows[6:8])):
        written(part, folder / "data" / "asked" / f"{split}.jsonl")
    asked = {name: rows[0][name] for name in ("question", "context")}
    written([asked], folder / "new.jsonl")


def written(rows: list[dict[str, str]], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
