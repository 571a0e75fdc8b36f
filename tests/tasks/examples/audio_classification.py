"""A tiny wav2vec 2.0, and hums of two pitches."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile
import torch
from test_sound import wav2vec2

RATE = 16_000


def hum(path: Path, hertz: float, rate: int) -> None:
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * np.arange(0.4 * rate) / rate), rate)


def prepare(folder: Path) -> None:
    for name in ("models/wav2vec2", "data", "new"):
        (folder / name).mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part in wav2vec2():
            part.save_pretrained(folder / "models" / "wav2vec2")
    with (folder / "data" / "digits.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["audio", "label"])
        for i in range(40):
            hum(folder / "data" / f"{i}.wav", 200 + 600 * (i % 2) + i, RATE)
            rows.writerow([f"{i}.wav", i % 2])
    hum(folder / "new" / "a.wav", 300, RATE)
