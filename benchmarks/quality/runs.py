"""One run: a method with its settings on a work, at a learning rate and a seed. One file each."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from works import Trial, Work, works

from trimtab.core.counts import summary
from trimtab.core.method import Method
from trimtab.core.registry import build
from trimtab.core.training import after_backward, parameters, penalty
from trimtab.init import fisher
from trimtab.tune import hardware

RESULTS = Path(__file__).parent.parent / "results" / "quality"
WARMUP = 0.06
CHOOSING = 256  # examples from which the places of a sparse method are chosen


@dataclass(frozen=True)
class Run:
    """`settings` are what differs from the method's defaults; `final` runs are scored on test."""

    work: str
    method: str
    settings: tuple[tuple[str, Any], ...]
    lr: float
    seed: int
    steps: int
    final: bool

    @property
    def row(self) -> str:
        return " ".join([self.method, *(f"{name}={value}" for name, value in self.settings)])

    @property
    def path(self) -> Path:
        kind = "final" if self.final else "search"
        name = f"{kind}-lr{self.lr:.3g}-seed{self.seed}.json"
        return RESULTS / self.work / self.row.replace(" ", "-") / name

    def build(self) -> Method:
        return build(self.method, dict(self.settings))


def saved(run: Run) -> dict[str, Any] | None:
    """What this run found, if it was of this many steps and of the method as it is now."""
    if not run.path.exists():
        return None
    found = json.loads(run.path.read_text(encoding="utf8"))
    same = found["steps"] == run.steps and found["method"] == repr(run.build())
    return found if same else None


def execute(run: Run, work: Work) -> dict[str, Any]:
    """Train and score; what fails says why, in the table too."""
    began = time.perf_counter()
    found: dict[str, Any] = {
        "work": run.work,
        "row": run.row,
        "method": repr(run.build()),
        "lr": run.lr,
        "seed": run.seed,
        "steps": run.steps,
        "versions": hardware.versions(),
        "hardware": hardware.facts(),
    }
    try:
        trial = work.open(run.build(), run.seed)
        counted = summary(trial.model)
        found |= {"trainable": counted.trainable, "total": counted.total}
        found["train_seconds"] = round(train(trial, run), 2)
        trial.model.eval()
        for split in ("validation", "test") if run.final else ("validation",):
            scores = trial.scores(split)
            found[split] = float(scores.mean())
            if split == "test":
                found["scores"] = packed(scores)
    except Exception as error:
        found["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    found["seconds"] = round(time.perf_counter() - began, 2)
    run.path.parent.mkdir(parents=True, exist_ok=True)
    run.path.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf8")
    return found


def train(trial: Trial, run: Run) -> float:
    """AdamW with a falling learning rate, no weight decay; the last state counts. Seconds."""
    began = time.perf_counter()
    if run.build().unready():  # its places are chosen from data first
        some = [torch.tensor(rows) for rows in trial.batches(run.seed, CHOOSING // 16)]
        fisher(
            trial.model,
            some,
            loss=lambda _, rows: trial.loss(rows.tolist()),
            examples=CHOOSING,
        )
    trial.model.train()
    optimizer = torch.optim.AdamW(parameters(trial.model, lr=run.lr), weight_decay=0.0)
    warm = max(1, math.ceil(WARMUP * run.steps))

    def share(step: int) -> float:
        return min((step + 1) / warm, (run.steps - step) / max(1, run.steps - warm))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for step, batch in enumerate(trial.batches(run.seed, run.steps), start=1):
        loss = trial.loss(batch) + penalty(trial.model)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        loss.backward()
        after_backward(trial.model, step, run.steps)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return time.perf_counter() - began


def packed(scores: np.ndarray) -> dict[str, Any]:
    """Rights and wrongs as bits in hexadecimal, other scores to five digits."""
    if np.isin(scores, (0, 1)).all():
        return {"n": len(scores), "bits": np.packbits(scores.astype(bool)).tobytes().hex()}
    return {"n": len(scores), "values": [round(float(one), 5) for one in scores]}


def unpacked(kept: dict[str, Any]) -> np.ndarray:
    if "values" in kept:
        return np.array(kept["values"])
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(kept["bits"]), dtype=np.uint8))
    return bits[: kept["n"]].astype(float)


HALVED = ("rank", "width", "length", "projection", "block")
"""What makes a method smaller; `reduction` makes it smaller by growing."""


def slimmer(method: Method) -> Iterator[tuple[str, Any]]:
    """Settings of less and less size, down to one of each."""
    names = {field.name for field in dataclasses.fields(method)}
    if getattr(method, "reduction", None):
        yield from (("reduction", method.reduction * 2**i) for i in range(1, 8))  # type: ignore[attr-defined]
    for name in HALVED:
        value = getattr(method, name, None) if name in names else None
        if isinstance(value, int) and value > 1:
            yield from ((name, value >> i) for i in range(1, value.bit_length()))
            return


@functools.cache
def known() -> dict[str, Work]:
    """The works by name; what one has read stays for the next run in this process."""
    return {one.name: one for one in works()}


def attempt(run: Run) -> dict[str, Any]:
    """A run in a process of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return execute(run, known()[run.work])


def one_thread() -> None:
    """What a process begins with: a core of its own, and no progress bars."""
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
