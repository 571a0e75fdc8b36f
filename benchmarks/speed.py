"""How long the same training takes here and through HF PEFT: alternating, by wall clock, with
accuracies.

    python benchmarks/speed.py [--data FOLDER] [--rounds 3]

The work: MiniLM-L6, LoRA of rank 8 on all linear maps and a new head, one epoch, batch 32. Peer A
is HF PEFT as its guides show it, peer B the same library tuned (`peers/hf_peft.py`). Ours runs as
measurement chooses, which may multiply with frozen matrices in eight bits, and once more with exact
products; beside them full fine-tuning with transformers' Trainer, set up as either peer. Each round
runs all with its own seed, one process each; full fine-tuning, which takes longest, in the first
alone. Medians over rounds are compared. Seconds are those of the training loop. Writes
results/speed.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import floor

HERE = Path(__file__).parent
RESULT = HERE / "results" / "speed.json"
CONTESTANTS = ("trimtab", "exact", "peer_b", "peer_a")
WHOLE = ("full_b", "full_a")
WORK = (
    "--model minilm --method lora --rank 8 --alpha 16 --lr 1e-3 --epochs 1 --batch-size 32 "
    "--max-length 128 --warmup 0.075 --no-probe-first --save-every 100000 --json"
)
NAMES = {
    "trimtab": "Trimtab",
    "exact": "Trimtab, products exact",
    "peer_a": "A: HF PEFT as its guides show it",
    "peer_b": "B: HF PEFT, tuned",
    "full_a": "full fine-tuning, as shown",
    "full_b": "full fine-tuning, tuned",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--data", type=Path, default=HERE.parent.parent / "shared/data/rotten_tomatoes"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not (options.data / "train.tsv").exists():
        print(f"no data: {options.data.name} has no train.tsv; name a folder with --data")
        sys.exit(2)
    rounds = []
    for seed in range(options.rounds):
        everyone = (*CONTESTANTS, *WHOLE) if seed == 0 else CONTESTANTS
        rounds.append({one: contest(one, options.data, seed) for one in everyone})
        for one in rounds[-1]:
            taken = rounds[-1][one]
            print(
                f"round {seed + 1}  {NAMES[one]:<34} {taken['seconds']:7.1f} s  "
                f"{taken['accuracy']:.4f}",
                flush=True,
            )
    result = conclude(rounds, options.data)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    for peer, ratio in result["ratios"].items():
        print(f"{ratio:.2f} times as fast as {NAMES[peer]}")


def contest(one: str, data: Path, seed: int) -> dict[str, Any]:
    if one in ("trimtab", "exact"):
        return trimtab(data, seed, "auto" if one == "trimtab" else "exact")
    how = ["--tuned"] if one.endswith("_b") else []
    how += ["--method", "full"] if one in WHOLE else []
    command = [str(HERE / "peers" / "hf_peft.py"), "--data", str(data), "--seed", str(seed), *how]
    return json.loads(output(command).splitlines()[-1])


def trimtab(data: Path, seed: int, products: str) -> dict[str, Any]:
    """The command line itself; a random head, as the peers have it, and no checkpoints while it
    trains.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        command = shlex.split(f"-m trimtab tune --data {shlex.quote(str(data))} --out {run} {WORK}")
        command += ["--seed", str(seed), "--products", products]
        metrics = json.loads(output(command))
        found = output(["-m", "trimtab", "predict", run, "--data", str(data / "test.tsv")])
        labels = [line.split("\t")[1] for line in lines(data / "test.tsv")[1:]]
        chosen = [json.loads(line)["label"] for line in found.splitlines()]
    right = [int(a == b) for a, b in zip(chosen, labels, strict=True)]
    return {
        "seconds": metrics["train_seconds"],
        "accuracy": sum(right) / len(right),
        "right": right,
        "trainable": metrics["trainable"],
        "peak_memory_bytes": metrics["peak_memory_bytes"],
        "wall_seconds": metrics["wall_seconds"],
        "tokens": round(metrics["tokens_per_second"] * metrics["train_seconds"]),
    }


def train_seconds(data: Path, flags: str) -> float:
    """Of the training loop of `trimtab tune` with these flags; the run's folder is not kept."""
    with tempfile.TemporaryDirectory() as folder:
        command = f"-m trimtab tune --data {shlex.quote(str(data))} --out {folder}/run {flags}"
        return json.loads(output(shlex.split(command)))["train_seconds"]


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf8").splitlines()


def output(command: list[str]) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip()


def conclude(rounds: list[dict[str, Any]], data: Path) -> dict[str, Any]:
    from trimtab.evaluate.bootstrap import mean_interval, paired_mean
    from trimtab.tune import hardware

    def pooled(one: str) -> list[float]:
        """Each test example's share of rounds in which it came out right."""
        columns = zip(*(turn[one]["right"] for turn in rounds if one in turn), strict=True)
        return [statistics.mean(column) for column in columns]

    all_ = (*CONTESTANTS, *WHOLE)
    median = {
        one: statistics.median(turn[one]["seconds"] for turn in rounds if one in turn)
        for one in all_
    }
    peers = all_[1:]
    return {
        "work": "MiniLM-L6, LoRA rank 8 on all linear maps, 1 epoch, batch 32, max length 128",
        "data": data.name,
        "rounds": [
            {one: {k: v for k, v in found.items() if k != "right"} for one, found in turn.items()}
            for turn in rounds
        ],
        "median_seconds": median,
        "floor_seconds": round(operations(rounds[0]["trimtab"]["tokens"]) / floor.rate(), 2),
        "ratios": {peer: round(median[peer] / median["trimtab"], 3) for peer in peers},
        "accuracy": {one: mean_interval(pooled(one)).as_dict() for one in all_},
        "accuracy_difference": {
            peer: paired_mean(pooled("trimtab"), pooled(peer)).as_dict() for peer in peers
        },
        "hardware": hardware.facts(),
        "versions": {**hardware.versions(), "peft": _version("peft")},
    }


def operations(tokens: int) -> int:
    """What training on so many tokens cannot do without; attention over 30 of them is nothing."""
    shapes = {(384, 384): 4, (384, 1536): 2}
    weights = 6 * sum(a * b * count for (a, b), count in shapes.items())
    features = 6 * sum((a + b) * count for (a, b), count in shapes.items())
    return floor.frozen(weights, tokens) + floor.low_rank(features, 8, tokens)


def _version(name: str) -> str:
    from importlib import metadata

    return metadata.version(name)


if __name__ == "__main__":
    main()
