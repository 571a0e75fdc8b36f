"""A measured plan against the same budget spread evenly: over all linear maps, and over q and v.

    python benchmarks/auto.py [--shared ../shared] [--only TASK …] [--minutes N] [--page]

MiniLM on five tasks, two budgets, three seeds, a fixed number of steps. The head is trained alone
once a task, and every run begins with it; the plan is measured once a task, on 128 of the examples
that are trained on, and the same for all seeds. Of each run the score of every test example is
kept, so that differences are paired. results/auto.json holds what is there already: a collection
that was stopped goes on. The table in docs/plan.md is written from it, better or not.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from auto_page import packed, page
from record import RESULTS, write

import trimtab
from trimtab.core import registry
from trimtab.core.counts import summary
from trimtab.core.heads import heads
from trimtab.evaluate.metrics import METRICS
from trimtab.plan import ESTIMATORS, Candidate, candidates, parse
from trimtab.plan.file import Plan
from trimtab.plan.propose import entries
from trimtab.tune.config import Config
from trimtab.tune.planning import Ground, loss_of, prepare, weigh

TASKS = {
    "rotten_tomatoes": "text-classification",
    "banking77": "text-classification",
    "snips_intents": "text-classification",
    "subjectivity": "text-classification",
    "wnut17": "token-classification",
}
BUDGETS = ("0.2%", "0.5%")  # the first: hardly more than rank 1 at every linear map
SEEDS = (0, 1, 2)
STEPS, BATCH, LENGTH, TRAINED, TESTED, MEASURED = 100, 16, 32, 1024, 512, 128
MOST = 16
ARMS = {
    "auto": "nuclear",
    "even": "even",
    "q, v": "even",
    "gradient": "gradient",
    "held-out": "held-out",
    "importance": "importance",
    "fisher": "fisher",
    "eva": "eva",
}
"""How each contestant divides the budget; the first is what `--method auto` does, the next two are
what is done without measuring. The others are compared on fewer seeds."""

OTHERS = tuple(ARMS)[3:]
TOLD = {"auto": "auto", "even": "all linear maps", "q, v": "q, v"}
PAGE = Path(__file__).parent.parent / "docs" / "plan.md"
NAME = "auto"

Key = tuple[str, str, str, int]  # task, budget, arm, seed


def wanted(only: Sequence[str]) -> Iterator[Key]:
    """Whole comparisons first: one seed of every task before the next."""
    arms = tuple(ARMS)[:3]
    for seed in SEEDS:
        for budget in BUDGETS:
            yield from ((task, budget, arm, seed) for task in only for arm in arms)
    yield from ((task, BUDGETS[0], arm, 0) for task in only for arm in OTHERS)


def opened(task: str, shared: Path) -> Ground:
    """The task's model with its head, and what its sites are measured on."""
    config = Config(
        model="minilm",
        data=str(shared / "data" / task),
        out="none",
        task=TASKS[task],
        dtype="float32",
        attention="sdpa",
        batch_size=BATCH,
        max_length=LENGTH,
        train_rows=TRAINED,
        skip_bad_rows=True,
    )
    return prepare(config, TRAINED)


class Work:
    """A task: what is trained on, what is tested on, and the plans under each budget."""

    def __init__(self, task: str, shared: Path) -> None:
        from trimtab.tune.session import read_data

        self.ground = opened(task, shared)
        session = self.session = self.ground.session
        splits = read_data(session.config)
        drawn = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(0))
        self.rows = splits.test.select(sorted(drawn[:TESTED].tolist()))
        self.test = session.encode(self.rows)
        self.base = copy.deepcopy(session.model)
        self.weighed: dict[str, tuple[list[Candidate], list[torch.Tensor], float]] = {}

    def plan(self, arm: str, budget: str) -> tuple[Plan, float]:
        """The plan of a contestant, and the seconds that measuring it took."""
        if arm not in self.weighed:
            began = time.perf_counter()
            target = ["query", "value"] if arm == "q, v" else None
            sites = candidates(self.base, [registry.build("lora", {})], target, MOST)
            every = max(1, len(self.ground.batches) * BATCH // MEASURED)
            few = Ground(
                self.session, self.ground.batches[every // 2 :: every], self.ground.shown, TRAINED
            )
            gains = weigh(few, sites, ESTIMATORS[ARMS[arm]])
            self.weighed[arm] = sites, gains, time.perf_counter() - began
        sites, gains, seconds = self.weighed[arm]
        total = sum(p.numel() for p in self.base.parameters())
        allowed = parse(budget).parameters(total, 4, 0)
        return Plan(entries(sites, gains, allowed)), seconds

    def run(self, budget: str, arm: str, seed: int) -> dict[str, Any]:
        """Train from the same head, in an order that follows from the seed; score the test."""
        plan, measuring = self.plan(arm, budget)
        session = self.session
        model = session.model = copy.deepcopy(self.base)
        torch.manual_seed(seed)
        adapter = trimtab.attach(model, plan.methods(), train=heads(model))
        own = summary(model)
        head = sum(n for name, n in own.sites.items() if f"{name}.".startswith(_tops(model)))
        began = time.perf_counter()
        losses = self._train(model, adapter, seed)
        seconds = time.perf_counter() - began
        answers = session.answers(session.outputs(self.test), self.rows)
        return {
            "seconds": round(seconds, 2),
            "measuring": round(measuring, 2),
            "parameters": own.trainable - head,
            "sites": len(plan.taken),
            "ranks": [entry.rank for entry in plan.entries],
            "loss": round(sum(losses[-10:]) / 10, 4),
            "answers": packed(answers),
            "value": METRICS[session.task.metric].value(answers, self.references),
        }

    @functools.cached_property
    def references(self) -> list[Any]:
        return self.session.references(self.rows)

    def _train(self, model: Any, adapter: Any, seed: int) -> list[float]:
        """AdamW at LoRA's learning rate, which falls to zero."""
        model.train()
        lr = registry.lookup("lora").learning_rate
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / 6, (STEPS - step) / (STEPS - 6))
        )
        generator, losses = torch.Generator().manual_seed(seed), []
        batches, loss = self.ground.batches, loss_of(self.session)
        order = torch.cat([torch.randperm(len(batches), generator=generator) for _ in range(20)])
        for index in order[:STEPS].tolist():
            value = loss(model, batches[index])
            value.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(value.item())
        model.eval()
        return losses


def _tops(model: Any) -> tuple[str, ...]:
    return tuple(f"{name}." for name in heads(model))


def known() -> dict[str, Any]:
    path = RESULTS / f"{NAME}.json"
    if not path.exists():
        return {"settings": settings(), "references": {}, "runs": {}}
    found = json.loads(path.read_text(encoding="utf8"))
    if found["settings"] != settings():
        sys.exit(f"{path} was made under other settings: move it away to measure anew")
    return found


def settings() -> dict[str, Any]:
    names = ("budgets", "steps", "batch", "length", "trained", "tested", "measured", "most")
    values = ([*BUDGETS], STEPS, BATCH, LENGTH, TRAINED, TESTED, MEASURED, MOST)
    return {**dict(zip(names, values, strict=True)), "arms": dict(ARMS)}


def collect(only: Sequence[str], shared: Path, minutes: float) -> None:
    end = time.monotonic() + 60 * minutes
    found, opened_ = known(), dict[str, Work]()
    for task, budget, arm, seed in wanted(only):
        key = f"{task} | {budget} | {arm} | {seed}"
        if key in found["runs"]:
            continue
        if time.monotonic() > end:
            print("the time is over: run it again to go on")
            return
        if task not in opened_:
            opened_[task] = Work(task, shared)
        work = opened_[task]
        found["runs"][key] = work.run(budget, arm, seed)
        found["references"][task] = packed(work.references)
        found.setdefault("metrics", {})[task] = work.session.task.metric
        write(NAME, found)
        told = {k: v for k, v in found["runs"][key].items() if k not in ("answers", "ranks")}
        print(key, json.dumps(told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--only", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--page", action="store_true", help="write the table from what is there")
    options = parser.parse_args()
    if not options.page:
        if not options.shared.is_dir():
            sys.exit(f"{options.shared} is not here: the data that plans are proven on")
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        collect(options.only, options.shared, options.minutes)
    page()


if __name__ == "__main__":
    main()
