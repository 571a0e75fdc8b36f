"""Tables: incomes of which 1 % are looked for, tumours; as rows for a transformer, and as texts.

What is adapted to differs from what was trained on first, by a stated rule: the model of incomes
has seen who works for the state, for himself or not at all, and is adapted to who works for a
company; the model of tumours has seen the smaller half of them, and is adapted to the larger.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pretraining import Drawn, trained
from row import Make, Row
from torch import nn

from trimtab.tasks import tabular

Table = list[dict[str, Any]]
_NUMBERS = ("age", "education-num", "capital-gain", "capital-loss", "hours-per-week")
_CATEGORIES = ("education", "marital-status", "occupation", "relationship", "race", "sex")
_RARE = 0.01  # of the rows have what is looked for
_SIZES = {"n_blocks": 3, "d_block": 64}


def incomes(shared: Path) -> tuple[Table, Table, Table]:
    """Records of adult: who does not work for a company; who does, of train and of test. The weight
    of a record in the census, and the country, are left out."""
    parts = []
    for name in ("adult.data", "adult.test"):
        with (shared / "adult" / name).open(encoding="utf8", newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
        parts.append([row for row in rows if row.get("Y")])
    first = [_income(row) for row in parts[0] if row["workclass"] != "Private"]
    known = {name: {row[name] for row in first} for name in _CATEGORIES}
    private = [
        [row for row in map(_income, _private(part)) if all(row[n] in known[n] for n in known)]
        for part in parts
    ]
    return first, private[0], private[1]


def _private(rows: Table) -> Table:
    return [row for row in rows if row["workclass"] == "Private"]


def _income(row: Mapping[str, str]) -> dict[str, Any]:
    label = "high" if row["Y"].startswith(">") else "low"
    numbers = {name: float(row[name]) for name in _NUMBERS}
    return {**numbers, **{name: row[name] for name in _CATEGORIES}, "label": label}


def thinned(rows: Table, most: int, drawn: random.Random) -> Table:
    """`most` rows, of which 1 % are high."""
    high, low = ([row for row in rows if row["label"] == one] for one in ("high", "low"))
    few = round(most * _RARE)
    found = drawn.sample(high, few) + drawn.sample(low, most - few)
    return drawn.sample(found, most)


def rare(shared: Path, out: Path) -> None:
    """10,000 to train on, 2,000, and 8,000 of the data's own test."""
    _, train, test = incomes(shared)
    drawn = random.Random(0)
    held = set(drawn.sample(range(len(train)), len(train) // 5))
    parts = {
        "train": thinned([row for i, row in enumerate(train) if i not in held], 10_000, drawn),
        "validation": thinned([row for i, row in enumerate(train) if i in held], 2000, drawn),
        "test": thinned(test, 8000, drawn),
    }
    for split, rows in parts.items():
        write(out / f"{split}.csv", rows)


def rare_texts(shared: Path, out: Path) -> None:
    """The same rows as short texts."""
    rare(shared, out)
    for path in out.glob("*.csv"):
        with path.open(encoding="utf8", newline="") as file:
            rows = list(csv.DictReader(file))
        write(path, ({"text": _told(row), "label": row["label"]} for row in rows))


def _told(row: Mapping[str, str]) -> str:
    of = (f"{row['sex']}, {row['race']}, {float(row['age']):.0f} years, {row['marital-status']}, "
          f"{row['relationship']}. {row['education']}, {row['occupation']}, "
          f"{float(row['hours-per-week']):.0f} hours a week")  # fmt: skip
    gain, loss = (float(row[f"capital-{kind}"]) for kind in ("gain", "loss"))
    return of + (f", gains {gain:.0f}" if gain else "") + (f", losses {loss:.0f}" if loss else "")


def tumours() -> tuple[Table, Table]:
    """scikit-learn's breast cancer: the smaller half by mean area, and the larger."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    names = [str(name) for name in found.feature_names]
    rows = [
        {**dict(zip(names, map(float, x), strict=True)), "label": str(found.target_names[y])}
        for x, y in zip(found.data, found.target, strict=True)
    ]
    rows.sort(key=lambda row: row["mean area"])
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def large_tumours(shared: Path, out: Path) -> None:
    """Half to train on, an eighth, and the rest for the test."""
    rows = random.Random(0).sample(tumours()[1], len(tumours()[1]))
    n = len(rows)
    ends = {"train": (0, n // 2), "validation": (n // 2, 5 * n // 8), "test": (5 * n // 8, n)}
    for split, (first, last) in ends.items():
        write(out / f"{split}.csv", rows[first:last])


def incomes_transformer(shared: Path, out: Path) -> None:
    """An FT-Transformer of 9,800 records: 400 batches of 128."""
    first, _, _ = incomes(shared / "data")
    pretrain(first, _CATEGORIES, out, steps=400)


def tumours_transformer(shared: Path, out: Path) -> None:
    """An FT-Transformer of 284 tumours: 100 batches of 128."""
    pretrain(tumours()[0], (), out, steps=100)


def pretrain(rows: Table, categories: Sequence[str], out: Path, steps: int) -> None:
    labels = sorted({row["label"] for row in rows})
    columns = tabular.Columns.of(
        [{name: x for name, x in row.items() if name != "label"} for row in rows], categories
    )
    torch.manual_seed(0)
    model = tabular.network(columns, len(labels), _SIZES)
    batch = columns.collate([columns.example(*columns.cells(row)) for row in rows])
    target = torch.tensor([labels.index(row["label"]) for row in rows])

    def loss(drawn: Drawn) -> torch.Tensor:
        places = drawn(len(rows))
        part = {key: None if x is None else x[places] for key, x in batch.items()}
        return nn.functional.cross_entropy(model(**part), target[places])

    tabular.save(trained(model, steps, loss, batch=128), out, columns, labels, _SIZES)


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    given = list(rows)
    with path.open("w", encoding="utf8", newline="") as file:
        writer = csv.DictWriter(file, list(given[0]))
        writer.writeheader()
        writer.writerows(given)


def _looked_for(label: str, *more: str) -> tuple[str, ...]:
    return ("--task-arg", f"positive={label}", "--task-arg", "weights=balanced", *more)


DATA: dict[str, Make] = {
    "rare-incomes": rare,
    "rare-incomes-texts": rare_texts,
    "large-tumours": large_tumours,
}
MODELS: dict[str, Make] = {
    "incomes-transformer": incomes_transformer,
    "tumours-transformer": tumours_transformer,
}
ROWS = {
    "incomes": Row(
        *("tabular-classification", "incomes-transformer", "rare-incomes"),
        steps=200,
        options=_looked_for("high", "--batch-size", "128"),
    ),
    "incomes-texts": Row(
        *("text-classification", "minilm", "rare-incomes-texts"),
        steps=200,
        options=_looked_for("high"),
    ),
    "tumours": Row(
        *("tabular-classification", "tumours-transformer", "large-tumours"),
        steps=100,
        options=("--task-arg", "positive=malignant"),
    ),
}
