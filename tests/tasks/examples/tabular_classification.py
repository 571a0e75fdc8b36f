"""Transfers of money, of which some are fraud, and a tiny transformer that knows their columns."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import torch

from trimtab.tasks import tabular

SIZES = {"n_blocks": 2, "d_block": 16, "attention_n_heads": 2}
SHOPS = ("books", "food", "tickets")
HEADER = ("amount", "hour", "shop", "label")


def transfers(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Large ones at night, for tickets, are fraud."""
    drawn, rows = random.Random(seed), []
    for _ in range(count):
        amount, hour = round(drawn.uniform(1, 100), 2), drawn.randrange(24)
        shop = drawn.choice(SHOPS)
        fraud = amount > 40 and hour < 12 and shop == "tickets"
        row = (amount, hour, shop, "fraud" if fraud else "sound")
        rows.append(dict(zip(HEADER, row, strict=True)))
    return rows


def written(rows: list[dict[str, Any]], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def reader(folder: Path, labels: tuple[str, ...] = ("fraud", "sound")) -> Path:
    """At random; its means and deviations are those of other transfers."""
    rows = [{k: x for k, x in row.items() if k != "label"} for row in transfers(200, seed=1)]
    columns = tabular.Columns.of(rows, ["shop"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tabular.network(columns, len(labels), SIZES)
    tabular.save(model, folder, columns, labels, SIZES)
    return folder


def prepare(folder: Path) -> None:
    reader(folder / "models" / "transfers")
    written(transfers(300), folder / "data" / "transfers.csv")
    new = [{k: x for k, x in row.items() if k != "label"} for row in transfers(3, seed=2)]
    written(new, folder / "data" / "new.csv")
