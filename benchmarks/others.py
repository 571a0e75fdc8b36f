"""Methods beside LoRA: here, through HF PEFT where it has them, and beside full fine-tuning.

    python benchmarks/others.py [--data FOLDER] [--rounds 3] [--steps 40] [--method NAME …]

MiniLM-L6, batch 32. Ours is `trimtab tune`, full fine-tuning included, whose seconds are those of
the training loop; peers as in speed.py, with the same sizes (`peers/hf_peft.py`). Every round runs
all, one process each; medians over rounds are compared. Writes results/others.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import record
from speed import HERE, output, train_seconds

WITH_PEER = ("ia3", "dora", "oft", "prefix", "ln")
ALONE = ("bitfit", "houlsby", "pfeiffer")
FULL = "full"
WORK = (
    "--model minilm --batch-size 32 --max-length 128 --no-head-only --no-probe-first "
    "--save-every 100000 --json"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=HERE.parent.parent / "shared/data/rotten_tomatoes"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--method", action="append", choices=[*WITH_PEER, *ALONE])
    options = parser.parse_args()
    chosen = options.method or [*WITH_PEER, *ALONE]
    turns = []
    for seed in range(options.rounds):
        turns.append({one: turn(one, options.data, seed, options.steps) for one in (FULL, *chosen)})
        print(json.dumps(turns[-1]), flush=True)
    median = {
        method: {who: statistics.median(turn[method][who] for turn in turns) for who in found}
        for method, found in turns[0].items()
    }
    result = {
        "work": f"MiniLM-L6, batch 32, {options.steps} steps",
        "data": options.data.name,
        "turns": turns,
        "median_seconds": median,
        "ratios": {method: ratios(median, method) for method in chosen},
    }
    record.write("others", result)
    print(json.dumps(result["ratios"], indent=1))


def ratios(median: dict[str, dict[str, float]], method: str) -> dict[str, float]:
    """How many times as fast as the peers, and as full fine-tuning here."""
    own = median[method]
    others = {who: seconds for who, seconds in own.items() if who != "trimtab"}
    others["full"] = median[FULL]["trimtab"]
    return {who: round(seconds / own["trimtab"], 3) for who, seconds in others.items()}


def turn(method: str, data: Path, seed: int, steps: int) -> dict[str, float]:
    flags = f"{WORK} --method {method} --seed {seed} --max-steps {steps}"
    found = {"trimtab": train_seconds(data, flags)}
    if method in WITH_PEER:
        script = [str(HERE / "peers" / "hf_peft.py"), "--data", str(data), "--method", method]
        for peer, tuned in (("peer_b", ["--tuned"]), ("peer_a", [])):
            command = [*script, "--seed", str(seed), "--max-steps", str(steps), *tuned]
            found[peer] = json.loads(output(command).splitlines()[-1])["seconds"]
    return found


if __name__ == "__main__":
    main()
