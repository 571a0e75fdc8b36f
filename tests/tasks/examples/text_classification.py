"""Sentences of two kinds."""

from __future__ import annotations

from pathlib import Path

PETS = ("cat", "dog", "hamster", "parrot")


def prepare(folder: Path) -> None:
    (folder / "data").mkdir()
    rows = [
        (text, label)
        for pet in PETS
        for n in range(1, 11)
        for text, label in (
            (f"My {pet} slept for {n} hours on the warm sofa", "home"),
            (f"The {pet} bank raised interest by {n} points", "money"),
        )
    ]
    lines = ["text,label", *(f"{text},{label}" for text, label in rows), ""]
    (folder / "data" / "reviews.csv").write_text("\n".join(lines), "utf8")
    (folder / "new.csv").write_text("text\nMy rabbit slept on the sofa\n", "utf8")
