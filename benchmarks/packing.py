"""Useful tokens a second on real texts of different lengths, here and through HF PEFT, alternating.

    python benchmarks/packing.py [--rounds 3] [--steps 12]

The work: questions and answers of gsm8k in the pieces of MiniLM's tokenizer, 8 a step, continued by
the decoder of `decoder.py` (a Llama of width 768, random weights) with LoRA of rank 8 on all linear
maps, transformers' Trainer for everyone. Peer A is HF PEFT as its guides show it: batches in random
order, padded, bf16 autocast, dropout. Peer B is tuned: bf16 throughout, no dropout, texts of like
length together. Here the texts of a step are one row without padding, packed by transformers'
`DataCollatorWithFlattening`. Useful are the tokens of texts, not of padding; the first two steps
are left out. Writes results/packing.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import floor
import record
from decoder import RANK, WARM, clocked, common, ours, peer
from speed import NAMES as KNOWN
from speed import output

DATA = Path(__file__).parents[2] / "shared" / "data" / "gsm8k" / "train.jsonl"
BATCH = 8
PACKED = "peer_b_packed"
CONTESTANTS = ("trimtab", "exact", "peer_b", PACKED, "peer_a")
OURS = CONTESTANTS[:2]
NAMES = {**KNOWN, PACKED: "B, packed"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not DATA.exists():
        raise SystemExit(f"no data: {DATA.parent.name}/{DATA.name} is not beside the repository")
    if options.contestant:
        print(json.dumps(contest(options.contestant, options.steps)))
        return
    turns = []
    for number in range(options.rounds):
        turns.append({one: turn(one, options.steps) for one in CONTESTANTS})
        for one, found in turns[-1].items():
            print(
                f"round {number + 1}  {NAMES[one]:<34} {found['tokens_per_second']:7.0f} tokens/s  "
                f"{found['useful']:.0%} useful",
                flush=True,
            )
    conclude(turns)


def turn(contestant: str, steps: int) -> dict[str, float]:
    command = [__file__, "--contestant", contestant, "--steps", str(steps)]
    return json.loads(output(command).splitlines()[-1])


def conclude(turns: list[dict[str, dict[str, float]]]) -> None:
    def median(one: str, fact: str) -> float:
        return statistics.median(turn[one][fact] for turn in turns)

    rates = {one: median(one, "tokens_per_second") for one in CONTESTANTS}
    ratios = {one: round(rates["trimtab"] / rates[one], 3) for one in CONTESTANTS[1:]}
    ratios["peer_b"] = min(ratios["peer_b"], ratios.pop(PACKED))
    record.write(
        "packing",
        {
            "work": f"gsm8k, {BATCH} texts a step",
            "turns": turns,
            "median_tokens_per_second": {one: round(rate) for one, rate in rates.items()},
            "ratios": ratios,
            "floor_tokens_per_second": round(floor.rate() / operations(), 1),
            "losses": {one: median(one, "loss") for one in CONTESTANTS},
        },
    )
    print(ratios)


def operations() -> int:
    """What a token cannot do without, attention aside."""
    shapes = {(768, 768): 2, (768, 256): 2, (768, 2048): 2, (2048, 768): 1}
    block = sum(a * b * count for (a, b), count in shapes.items())
    features = sum((a + b) * count for (a, b), count in shapes.items())
    return floor.frozen(12 * block + 768 * 32_000, 1) + floor.low_rank(12 * features, RANK, 1)


def contest(contestant: str, steps: int) -> dict[str, float]:
    import transformers
    from transformers import Trainer

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.set_seed(0)
    model = ours(contestant) if contestant in OURS else peer(contestant in ("peer_b", PACKED))
    together = {"train_sampling_strategy": "group_by_length"} if contestant == "peer_b" else {}
    arguments = common(BATCH, bf16=contestant == "peer_a", **together)
    collate = Counted(contestant in (*OURS, PACKED))
    examples = texts(BATCH * (steps + WARM))
    trainer = Trainer(model, arguments, train_dataset=examples, data_collator=collate)
    took, loss = clocked(trainer)
    useful, filled = sum(collate.useful[WARM:]), sum(collate.filled[WARM:])
    rate = useful / sum(took[WARM - 1 :])
    return {"tokens_per_second": rate, "useful": useful / filled, "loss": loss}


def texts(count: int) -> list[dict[str, list[int]]]:
    """The first of the training data."""
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf8").splitlines()[:count]]
    ids = tokenizer()([f"{row['question']}\n{row['answer']}" for row in rows])["input_ids"]
    return [{"input_ids": one} for one in ids]


def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from trimtab.tasks.models import resolve

    return AutoTokenizer.from_pretrained(resolve("minilm"))


class Counted:
    """A collator that counts the places of each batch, and those that hold a token of a text."""

    def __init__(self, packed: bool) -> None:
        from transformers import DataCollatorForLanguageModeling, DataCollatorWithFlattening

        padding = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
        self.collate = DataCollatorWithFlattening() if packed else padding
        self.useful: list[int] = []
        self.filled: list[int] = []

    def __call__(self, rows: list[Any]) -> Any:
        batch = self.collate(rows)
        self.useful.append(sum(len(row["input_ids"]) for row in rows))
        self.filled.append(batch["input_ids"].numel())
        return batch


if __name__ == "__main__":
    main()
