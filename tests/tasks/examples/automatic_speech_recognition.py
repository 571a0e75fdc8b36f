"""A tiny wav2vec 2.0 without a tokenizer, and hums that stand for words."""

from __future__ import annotations

import csv
from pathlib import Path

from tiny_speech import RATE, written

from examples.audio_classification import hum


def prepare(folder: Path) -> None:
    for name in ("models", "data", "new"):
        (folder / name).mkdir()
    written("aligned", folder / "models").rename(folder / "models" / "wav2vec2")
    with (folder / "data" / "spoken.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["audio", "text"])
        for i in range(40):
            word = ("Low", "High")[i % 2]
            hum(folder / "data" / f"{i}.wav", 200 + 600 * (i % 2) + i, RATE)
            rows.writerow([f"{i}.wav", word])
    hum(folder / "new" / "a.wav", 300, RATE)
