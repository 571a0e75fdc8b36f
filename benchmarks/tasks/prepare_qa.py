"""Questions about restaurants, built from the E2E data: no person asked them.

    python benchmarks/tasks/prepare_qa.py ../shared/data/e2e_nlg OUT

E2E (Novikova et al. 2017, arXiv:1706.09254) has descriptions of restaurants, each with the facts
that it tells: name[Cotto], food[English], near[The Portland Arms]. A context is some descriptions
of different restaurants, a question asks for a fact of one of them, and the answer is the fact's
value where that description says it word for word. Such questions have few forms and all have an
answer: they show that reading a span works, not how well people's questions are answered.

Training and validation questions come from E2E's development set, parted by facts; test questions
from its test set, half of whose names occur nowhere else.
"""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ASKED = {
    "food": "What food does {name} serve?",
    "area": "In which area is {name}?",
    "near": "What is {name} near to?",
    "customer rating": "How do customers rate {name}?",
    "priceRange": "What are the prices at {name}?",
    "eatType": "What kind of place is {name}?",
}
SIZES = {"train": 4000, "validation": 400, "test": 800}
MOST = 5  # descriptions in a context
_FACT = re.compile(r"([\w ]+)\[([^\]]*)\]")

Told = tuple[dict[str, str], str]  # facts, and a description that tells them


def questions(folder: Path, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Each split's rows: question, context, answer and where it starts."""
    known, unseen = _read(folder / "devset.csv"), _read(folder / "testset_w_refs.csv")
    facts = sorted({_key(one) for one, _ in known})
    random.Random(seed).shuffle(facts)
    held_out = set(facts[: len(facts) // 8])
    parts = {
        "train": [one for one in known if _key(one[0]) not in held_out],
        "validation": [one for one in known if _key(one[0]) in held_out],
        "test": unseen,
    }
    return {
        split: list(_asked(told, SIZES[split], random.Random(f"{seed} {split}")))
        for split, told in parts.items()
    }


def _read(path: Path) -> list[Told]:
    with path.open(encoding="utf8", newline="") as file:
        rows = [(dict(_FACT.findall(row["mr"])), row["ref"]) for row in csv.DictReader(file)]
    return [({key.strip(): value for key, value in facts.items()}, text) for facts, text in rows]


def _key(facts: dict[str, str]) -> str:
    return json.dumps(facts, sort_keys=True)


def _asked(told: Sequence[Told], count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    while count:
        facts, text = rng.choice(told)
        able = {key: at for key in ASKED if (at := _place(facts.get(key), text)) is not None}
        if not able or facts["name"] not in text:
            continue
        others = rng.sample(told, 4 * MOST)
        beside = [one for _, one in others if facts["name"] not in one][: rng.randrange(MOST)]
        before, after = beside[: len(beside) // 2], beside[len(beside) // 2 :]
        key = rng.choice(list(able))
        yield {
            "question": ASKED[key].format(name=facts["name"]),
            "context": " ".join([*before, text, *after]),
            "answer": facts[key],
            "answer_start": sum(len(one) + 1 for one in before) + able[key],
        }
        count -= 1


def _place(value: str | None, text: str) -> int | None:
    """Where the text says the value, as words."""
    found = re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) if value else None
    return found.start() if found else None


def write(folder: Path, out: Path, seed: int = 0) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in questions(folder, seed).items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf8")
        print(f"{split}: {len(rows):,} questions")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
