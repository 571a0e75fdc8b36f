"""How long a policy takes to act, one episode at a time: the base, with LoRA beside it, and merged.

    python benchmarks/policy.py [--shared ../shared]

The decision transformer of the tasks' table, in its simulator, from the 20 steps that it sees; the
kinds take turns, so that what else the machine does falls on all. Into results/policy.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch

sys.path.append(str(Path(__file__).parent / "tasks"))

ROUNDS, CONTEXT = 200, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    shared = parser.parse_args().shared
    from run import model as made
    from transformers import DecisionTransformerModel

    folder = made("policy", shared)
    base, beside, merged = (DecisionTransformerModel.from_pretrained(folder).eval() for _ in "abc")
    adapt(beside)
    adapt(merged, merge=True)
    kinds = {"base": base, "unmerged": beside, "merged": merged}
    record.write("policy", {"context": CONTEXT, "rounds": ROUNDS, "milliseconds": measured(kinds)})


def adapt(model: torch.nn.Module, *, merge: bool = False) -> None:
    import trimtab as tt

    tt.attach(model, tt.LoRA(rank=8))
    if merge:
        tt.merge(model)


def measured(kinds: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of an action, batch 1."""
    took: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS + 10):  # the first few warm up
        for name, model in kinds.items():
            policy = ready(model)
            state, reward = np.zeros((1, model.config.state_dim), np.float32), np.zeros(1)
            began = time.perf_counter()
            policy(state, reward)
            took[name].append(1000 * (time.perf_counter() - began))
    found = {name: sorted(one[10:]) for name, one in took.items()}
    for name, one in found.items():
        print(f"{name:9s} {statistics.median(one):.2f} ms")
    return {
        name: {"median": statistics.median(one), "p95": one[int(0.95 * len(one))]}
        for name, one in found.items()
    }


def ready(model: Any) -> Any:
    """A policy that has seen as many steps as it can."""
    from trimtab.tasks.reinforcement_learning import Policy

    policy = Policy(model, torch.zeros(1), CONTEXT, 1.0)
    policy.states = [torch.zeros(1, model.config.state_dim)] * (CONTEXT - 1)
    policy.actions = [torch.zeros(1, model.config.act_dim)] * (CONTEXT - 1)
    policy.to_go = [torch.zeros(1, 1)] * (CONTEXT - 1)
    return policy


if __name__ == "__main__":
    main()
