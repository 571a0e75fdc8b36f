"""Visits to a shop whose items come in a circle, and a tiny transformer over its items."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

ITEMS = [f"item{i}" for i in range(30)]


def visits(count: int) -> list[dict[str, Any]]:
    """The next item is three further, or now and then any."""
    drawn, rows = random.Random(0), []
    for _ in range(count):
        found = [drawn.randrange(len(ITEMS))]
        for _ in range(drawn.randint(3, 9)):
            usual = (found[-1] + 3) % len(ITEMS)
            found.append(drawn.randrange(len(ITEMS)) if drawn.random() < 0.1 else usual)
        rows.append({"items": [ITEMS[i] for i in found]})
    return rows


def shop(folder: Path) -> Path:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
    config = GPT2Config(**sizes, vocab_size=len(ITEMS), bos_token_id=None, eos_token_id=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    (folder / "items.json").write_text(json.dumps(ITEMS), "utf8")
    return folder


def prepare(folder: Path) -> None:
    shop(folder / "models" / "shop")
    (folder / "data").mkdir()
    for name, rows in (("visits", visits(300)), ("new", visits(2))):
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / "data" / f"{name}.jsonl").write_text("".join(lines), "utf8")
