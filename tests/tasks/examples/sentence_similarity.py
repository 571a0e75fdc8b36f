"""The adapter of a run, as the page's command leaves it."""

from __future__ import annotations

import json
from pathlib import Path

from trimtab.tune.config import parse
from trimtab.tune.run import tune

INTENTS = {
    "lost": ("my card is lost", "I lost my card", "where is my card", "the card is gone"),
    "rate": ("what is the rate", "how is the rate set", "tell me the rate", "is the rate fair"),
}


def prepare(folder: Path) -> None:
    rows = [{"text": text, "label": label} for label, texts in INTENTS.items() for text in texts]
    data = folder / "intents"
    data.mkdir()
    for split in ("train", "validation", "test"):
        (data / f"{split}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), "utf8"
        )
    settings = {"task": "sentence-similarity", "model": "minilm", "data": str(data)}
    fixed = {"dtype": "float32", "attention": "sdpa", "products": "exact", "max_steps": 1}
    out, kind = str(folder / "runs" / "intents"), {"kind": "label"}
    tune(parse({**settings, **fixed, "out": out, "task_arg": kind}, "the example"), quiet=True)
