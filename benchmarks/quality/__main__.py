"""Every method on the same works, some on further ones: `python benchmarks/quality`, or
`make quality`.

For each method and work the learning rate is chosen first, on validation data alone, in short runs
from a third to three times the method's own, further where the best is at an edge; then it is
trained with that rate and scored on test data, with several seeds. Methods that train over 1 % of
the parameters are tried a second time, with the largest size that stays below. What is there is not
run again; it may be stopped at any moment. `--jobs` runs that many at once, a thread each.

    python benchmarks/quality [--work NAME] [--method NAME …] [--set rank=4] [--seeds 3] [--jobs 2]
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any

import table
from runs import Run, attempt, one_thread, saved, slimmer
from works import Work, works

from trimtab.core.counts import summary
from trimtab.core.registry import build, lookup, methods

Settings = tuple[tuple[str, Any], ...]
SMALL = 0.01
FACTOR = 3.0
AT_MOST = 5  # learning rates


def main() -> None:
    options = arguments()
    known = [
        one for one in works() if one.path.exists() and one.name in (options.work or [one.name])
    ]
    names = [name for name in methods() if name in (options.method or [name])]
    if not known or not names:
        raise SystemExit("no such work or method, or no data beside the repository")
    until = time.monotonic() + 60 * options.minutes
    given = tuple(assigned(one) for one in options.set)
    rows = [
        Row(work, name, given, options.defaults)
        for work in known
        for name in names
        if work.takes(name)
    ]
    rows.sort(key=lambda row: [one.name for one in known].index(row.work.name) > 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, one_thread) as pool:
        running: dict[Any, Row] = {}
        for seeds in range(options.seeds + 1):  # all are searched before any is trained in full
            waiting = list(rows)
            while waiting or running:
                while waiting and len(running) < options.jobs and time.monotonic() < until:
                    row = waiting.pop(0)
                    run = next(row.due(seeds), None)
                    if run is not None:
                        running[pool.submit(attempt, run)] = row
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    tell(one.result())
                    waiting.insert(0, running.pop(one))
    table.write()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", action="append")
    parser.add_argument("--method", action="append")
    parser.add_argument("--set", action="append", default=[], help="name=value: not its default")
    parser.add_argument("--defaults", action="store_true", help="no size but its default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e9)
    return parser.parse_args()


def assigned(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def tell(found: dict[str, Any]) -> None:
    test = f"  test {found['test']:.4f}" if "test" in found else ""
    valid = f"validation {found['validation']:.4f}" if "validation" in found else found["failed"]
    print(
        f"{found['work']:<16}{found['row']:<28} lr {found['lr']:<8.3g} seed {found['seed']} "
        f"{found['steps']:>4} steps {found['seconds']:7.1f} s  {valid}{test}",
        flush=True,
    )


class Row:
    """A method on a work: its runs in order, each as soon as those before it say which it is."""

    def __init__(self, work: Work, method: str, given: Settings, alone: bool = False) -> None:
        self.work, self.method, self.given = work, method, given
        self.alone = alone or bool(given)  # no other size is tried

    def due(self, seeds: int) -> Iterator[Run]:
        """What is not there yet, up to this many seeds."""
        for settings in self.settings():
            for run in self.planned(settings, seeds):
                if saved(run) is None:
                    yield run
                    return

    def settings(self) -> Iterator[Settings]:
        """What is given, or the defaults; and if these train over 1 %, the largest that trains
        less."""
        yield self.given
        if self.alone:
            return
        first = saved(self.search((), lookup(self.method).learning_rate))
        if first is None or share(first) <= SMALL:
            return
        for setting in slimmer(build(self.method, {})):
            if counted(self.work.name, self.method, setting) <= SMALL:
                yield (setting,)
                return

    def search(self, settings: Settings, lr: float) -> Run:
        return Run(self.work.name, self.method, settings, lr, 0, self.work.search, final=False)

    def planned(self, settings: Settings, seeds: int) -> Iterator[Run]:
        own = lookup(self.method).learning_rate
        rates = [own, own * FACTOR, own / FACTOR]
        for lr in rates:  # grows below
            yield self.search(settings, lr)
            if lr is rates[-1] and (more := self.beyond(settings, rates)):
                rates.append(more)
        if best := self.best(settings, rates):
            for seed in range(seeds):
                yield Run(
                    self.work.name, self.method, settings, best, seed, self.work.steps, final=True
                )

    def found(self, settings: Settings, rates: list[float]) -> dict[float, float]:
        every = {lr: saved(self.search(settings, lr)) for lr in rates}
        return {lr: one["validation"] for lr, one in every.items() if one and "validation" in one}

    def best(self, settings: Settings, rates: list[float]) -> float | None:
        found = self.found(settings, rates)
        return max(found, key=lambda lr: (found[lr], -lr), default=None)

    def beyond(self, settings: Settings, rates: list[float]) -> float | None:
        """A rate further out, where the best so far is at an edge and others may be better."""
        best = self.best(settings, rates)
        if best is None or len(rates) >= AT_MOST or best not in (min(rates), max(rates)):
            return None
        return best * FACTOR if best == max(rates) else best / FACTOR


def share(found: dict[str, Any]) -> float:
    return found["trainable"] / found["total"] if "trainable" in found else 0.0


@functools.cache
def counted(work: str, method: str, setting: tuple[str, Any]) -> float:
    """The share of the parameters that a setting trains."""
    chosen = next(one for one in works() if one.name == work)
    try:
        found = summary(chosen.open(build(method, dict([setting])), 0).model)
    except Exception:  # a size that the method refuses
        return 1.0
    return found.trainable / found.total


if __name__ == "__main__":
    main()
