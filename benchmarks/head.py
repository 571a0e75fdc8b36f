"""An epoch of training only a head: on features computed once, against every peer's way through the
frozen model.

    python benchmarks/head.py [--data FOLDER] [--rounds 3]

MiniLM-L6, batch 32. Ours is what `trimtab tune --method head` takes for each epoch after the first:
runs of one and of eleven epochs, their difference by ten. Peers as in speed.py, the base frozen.
Writes results/head.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import record
from speed import HERE, output, train_seconds

MORE = 10
WORK = "--model minilm --method head --batch-size 32 --max-length 128 --json"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=HERE.parent.parent / "shared/data/rotten_tomatoes"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    turns = []
    for seed in range(options.rounds):
        few, many = (ours(options.data, seed, epochs) for epochs in (1, 1 + MORE))
        turns.append({"trimtab": (many - few) / MORE})
        for peer, tuned in (("peer_b", ["--tuned"]), ("peer_a", [])):
            script = [str(HERE / "peers" / "hf_peft.py"), "--data", str(options.data)]
            found = output([*script, "--method", "head", "--seed", str(seed), *tuned])
            turns[-1][peer] = json.loads(found.splitlines()[-1])["seconds"]
        print(turns[-1], flush=True)
    median = {one: statistics.median(turn[one] for turn in turns) for one in turns[0]}
    result = {
        "work": "MiniLM-L6, the head alone, an epoch after the first",
        "turns": turns,
        "median_seconds": median,
        "ratios": {
            peer: round(median[peer] / median["trimtab"], 1) for peer in ("peer_a", "peer_b")
        },
    }
    record.write("head", result)
    print(result["ratios"])


def ours(data: Path, seed: int, epochs: int) -> float:
    more = f"--seed {seed} --epochs {epochs} --patience 100 --eval-every 100000"
    return train_seconds(data, f"{WORK} {more}")


if __name__ == "__main__":
    main()
