"""LoRA over a base in NF4 with double quantisation (QLoRA) and over the same base in bf16: memory,
time and accuracy after the same steps.

    python benchmarks/qlora.py [--data FOLDER] [--rounds 3] [--steps 60]

The work: MiniLM-L6, LoRA of rank 8 on all linear maps and a new head, batch 16, maximum length 64,
compute in bf16. A process each, alternating; medians over rounds. Writes results/qlora.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULT = HERE / "results" / "qlora.json"
BASES = ("bf16", "nf4")
BATCH, LENGTH, TESTED_EVERY = 16, 64, 2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--data", type=Path, default=HERE.parent.parent / "shared/data/rotten_tomatoes"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--run", choices=BASES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.data / "train.tsv").exists():
        print(f"no data: {options.data.name} has no train.tsv; name a folder with --data")
        sys.exit(2)
    if options.run:
        print(json.dumps(run(options.run, options.data, options.steps, options.seed)))
        return
    found: dict[str, list[dict[str, Any]]] = {base: [] for base in BASES}
    for seed in range(options.rounds):
        for base in BASES:
            command = [sys.executable, __file__, "--run", base, "--seed", str(seed)]
            command += ["--data", str(options.data), "--steps", str(options.steps)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            found[base].append(json.loads(answer.stdout.splitlines()[-1]))
            print(f"round {seed + 1}  {base}  {found[base][-1]}", flush=True)
    medians = {
        base: {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        for base, runs in found.items()
    }
    result = {"steps": options.steps, "rounds": options.rounds, "medians": medians, "runs": found}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


def run(base: str, data: Path, steps: int, seed: int) -> dict[str, Any]:
    """One training; the bytes of the base's parameters, of its linear maps alone, and the peak."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import trimtab
    from trimtab.tasks.models import resolve

    folder = resolve("minilm")
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    if base == "nf4":
        trimtab.quantise(model, "nf4")
    held, maps = size(model), size(model.bert.encoder)
    trimtab.attach(model, trimtab.LoRA(rank=8), train="classifier")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def batch(rows: list[tuple[str, int]]) -> dict[str, Any]:
        texts = [text for text, _ in rows]
        encoded = tokenizer(
            texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"
        )
        return {**encoded, "labels": torch.tensor([label for _, label in rows])}

    train, test = read(data / "train.tsv"), read(data / "test.tsv")[::TESTED_EVERY]
    order = torch.randperm(len(train)).tolist()
    optimizer = torch.optim.AdamW(trimtab.parameters(model), lr=1e-3)
    began = time.perf_counter()
    model.train()
    for step in range(steps):
        chosen = [train[i] for i in order[step * BATCH : (step + 1) * BATCH]]
        model(**batch(chosen)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(test), 64):
            own = batch(test[start : start + 64])
            right += int((model(**own).logits.argmax(-1) == own["labels"]).sum())
    return {
        "base_bytes": held,
        "encoder_bytes": maps,
        "seconds": round(seconds, 2),
        "peak_bytes": peak * 1024,
        "peak_before_training_bytes": before * 1024,
        "accuracy": round(right / len(test), 4),
    }


def size(model: Any) -> int:
    """The bytes of a module's tensors, the scales of its codes included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def read(path: Path) -> list[tuple[str, int]]:
    rows = [line.split("\t") for line in path.read_text(encoding="utf8").splitlines()[1:]]
    return [(text, int(label not in ("0", "negative", "neg"))) for text, label in rows]


if __name__ == "__main__":
    main()
