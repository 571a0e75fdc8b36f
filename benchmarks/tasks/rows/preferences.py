"""Preferences, of pairs that are built here: no real pairs are at hand.

Of a speech of Shakespeare's with four lines or more the first two are the prompt, and its next two
lines are preferred to the same words in another order. Speeches keep their order: 80, 10 and 10 of
a hundred.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from row import Make, Row

_ENDS = {"train": (0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1)}


def orders(shared: Path, out: Path) -> None:
    text = (shared / "tinyshakespeare" / "input.txt").read_text("utf8")
    speeches = [speech.split("\n") for speech in re.split(r"\n\n+", text.strip())]
    drawn = random.Random(0)
    pairs = []
    for name, *lines in speeches:
        if len(lines) < 4:
            continue
        words = "\n".join(lines[2:4]).split(" ")
        shuffled = drawn.sample(words, len(words))
        if shuffled != words:
            prompt = "\n".join([name, *lines[:2]]) + "\n"
            pairs.append(
                {"prompt": prompt, "chosen": " ".join(words), "rejected": " ".join(shuffled)}
            )
    for split, ends in _ENDS.items():
        first, last = (round(end * len(pairs)) for end in ends)
        lines = [json.dumps(pair) + "\n" for pair in pairs[first:last]]
        (out / f"{split}.jsonl").write_text("".join(lines), "utf8")


DATA: dict[str, Make] = {"orders": orders}
ROWS = {
    "order": Row(
        *("preference", "stories260K", "orders"),
        steps=60,
        options=("--batch-size", "16"),
        methods=("lora", "ia3", "full"),  # Llama has no biases
    ),
    "order-reward": Row(
        *("preference", "stories260K", "orders"),
        steps=100,
        options=("--task-arg", "kind=reward", "--batch-size", "16"),
        methods=("lora", "ia3", "full"),
        rates={"lora": 1e-2},
    ),
}
