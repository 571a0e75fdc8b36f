"""Recommendation, of visits to a simulated shop: no real log is at hand.

A shop of 400 items in 20 departments, of which few items are sold often (Zipf). A visitor has an
interest, a mixture of departments that drifts (a step of a random walk at each visit). The next
department is the one that usually follows the present one (0.6), or is drawn of the interest.
Within it, the next item is one of the two that go with the present one (0.7), or is drawn by how
well it sells.

In the second period every department is followed by others, and half of the items go with others.
A visitor is a row. The model has seen 6,000 visitors of the first period.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pretraining import Drawn, trained
from row import Make, Row
from transformers import GPT2Config, GPT2LMHeadModel

_ITEMS, _DEPARTMENTS = 400, 20
_EACH = _ITEMS // _DEPARTMENTS
_FOLLOWS, _GOES_WITH, _DRIFT = 0.6, 0.7, 0.3
_SPLITS = {"train": 2000, "validation": 300, "test": 1000}


@dataclass(frozen=True)
class Shop:
    """`follows` (departments,) and `goes` (items, departments, 2): the items of each department
    that go with an item."""

    follows: np.ndarray
    goes: np.ndarray

    def visit(self, drawn: np.random.Generator) -> list[int]:
        """8 to 24 items."""
        interest = drawn.normal(size=_DEPARTMENTS) * 2
        found = [self._sold(self._department(interest, drawn), drawn)]
        for _ in range(drawn.integers(7, 24)):
            interest = interest + drawn.normal(size=_DEPARTMENTS) * _DRIFT
            last, at = found[-1], found[-1] // _EACH
            usual = drawn.random() < _FOLLOWS
            next_at = int(self.follows[at]) if usual else self._department(interest, drawn)
            if drawn.random() < _GOES_WITH:
                found.append(int(drawn.choice(self.goes[last, next_at])))
            else:
                found.append(self._sold(next_at, drawn))
        return found

    @staticmethod
    def _department(interest: np.ndarray, drawn: np.random.Generator) -> int:
        p = np.exp(interest - interest.max())
        return int(drawn.choice(_DEPARTMENTS, p=p / p.sum()))

    @staticmethod
    def _sold(department: int, drawn: np.random.Generator) -> int:
        p = 1 / np.arange(1, _EACH + 1)
        return department * _EACH + int(drawn.choice(_EACH, p=p / p.sum()))


def periods() -> tuple[Shop, Shop]:
    drawn = np.random.default_rng(0)
    first, second = (drawn.permutation(_DEPARTMENTS) for _ in range(2))
    goes, others = (_goes(drawn) for _ in range(2))
    changed = drawn.random(_ITEMS) < 0.5
    return Shop(first, goes), Shop(second, np.where(changed[:, None, None], others, goes))


def _goes(drawn: np.random.Generator) -> np.ndarray:
    within = drawn.integers(_EACH, size=(_ITEMS, _DEPARTMENTS, 2))
    return within + _EACH * np.arange(_DEPARTMENTS)[None, :, None]


def second_period(shared: Path, out: Path) -> None:
    """2,000 visitors to train on, 300, and 1,000."""
    drawn, shop = np.random.default_rng(2), periods()[1]
    for split, visitors in _SPLITS.items():
        rows = (shop.visit(drawn) for _ in range(visitors))
        lines = [json.dumps({"items": [f"item{i}" for i in row]}) + "\n" for row in rows]
        (out / f"{split}.jsonl").write_text("".join(lines), "utf8")


def visitor(shared: Path, out: Path) -> None:
    """A transformer of GPT-2's kind, on the visitors of the first period: 1,500 batches of 64."""
    drawn, shop = np.random.default_rng(1), periods()[0]
    visits = [torch.tensor(shop.visit(drawn)) for _ in range(6000)]
    ids = torch.nn.utils.rnn.pad_sequence(visits, batch_first=True, padding_value=-100)
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": _ITEMS}
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, **still, bos_token_id=None, eos_token_id=None))

    def loss(drawn: Drawn) -> torch.Tensor:
        part = ids[drawn(len(ids))]
        there = part >= 0
        return model(input_ids=part.clamp(min=0), attention_mask=there.long(), labels=part).loss

    trained(model, 1500, loss, lr=3e-3).save_pretrained(out)
    (out / "items.json").write_text(json.dumps([f"item{i}" for i in range(_ITEMS)]), "utf8")


DATA: dict[str, Make] = {"second-period": second_period}
MODELS: dict[str, Make] = {"visitor": visitor}
ROWS = {
    "shop": Row(
        *("recommendation", "visitor", "second-period"), steps=300, options=("--batch-size", "64")
    ),
}
