"""Pictures of three colours in folders, and a tiny transformer over patches."""

from __future__ import annotations

import shutil
from pathlib import Path

import tiny_pairs


def prepare(folder: Path) -> None:
    tiny_pairs.write(folder / "models" / "deit", "vit")
    tiny_pairs.pictures(folder / "new", "list.jsonl", count=45)
    (folder / "new" / "list.jsonl").unlink()
    for i, picture in enumerate(sorted((folder / "new").iterdir(), key=lambda p: int(p.stem))):
        kept = folder / "data" / "flowers" / list(tiny_pairs.COLOURS)[i % 3] / picture.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, kept)
