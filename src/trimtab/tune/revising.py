"""`plan --from RUN`: what a run has made of its ranks, and where there is gradient left.

    σ = singular values of ΔW,   p = σ / Σ σ,   used = ⌈exp(-Σ p log p)⌉

The effective rank (Roy and Vetterli 2007, EUSIPCO) of what a site has learnt is what it used. It
keeps that; ranks beyond it, of all sites, go anew to where the gradient of the adapted model, by
the estimator, promises most.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trimtab.core.adapter import Adapter, record
from trimtab.core.counts import summary
from trimtab.core.delta import Delta
from trimtab.core.errors import InputError
from trimtab.core.heads import heads
from trimtab.core.lowrank import LowRank
from trimtab.core.method import Values
from trimtab.match import sites
from trimtab.methods.whole import Whole
from trimtab.plan import Budget, Candidate, Entry, Plan, candidates, entries, parse
from trimtab.plan.estimators import estimator as named
from trimtab.plan.file import base
from trimtab.tune.folder import OWN, Run
from trimtab.tune.planning import ESTIMATOR, EXAMPLES, MOST, ground_of, weigh


def revise(
    folder: str,
    budget: str | None = None,
    *,
    estimator: str = ESTIMATOR,
    examples: int = EXAMPLES,
    most: int = MOST,
) -> Plan:
    """The plan of a finished run, with ranks moved from sites that did not use theirs.

    Without a budget, as many parameters as the run has trained beside its head.

    Raises:
        InputError: a run without adapters of low rank, or that is not finished.
    """
    began = time.perf_counter()
    run = Run(Path(folder))
    config = run.finished()
    ground = ground_of(folder, config, examples)
    model = ground.session.model
    adapter = record(model).adapter(OWN)
    kinds = sorted({method.name for _, method in adapter.entries})
    method = next((d.method for _, d in adapter.deltas() if isinstance(d.method, LowRank)), None)
    if method is None:
        raise InputError(
            f"{folder} has trained {', '.join(kinds)}: only plans of ranks are revised"
        )
    deltas = {site: d for site, d in adapter.deltas() if d.method.name == method.name}
    known = {site.name: site for site in sites(model)}
    wanted = sorted({*deltas, *_considered(config.plan)} & known.keys())
    found = candidates(model, [method], wanted, most)
    gains = weigh(ground, found, named(estimator))
    spectra = {site: spectrum(delta) for site, delta in deltas.items()}
    used = [effective_rank(spectra[c.site.name]) if c.site.name in spectra else 0 for c in found]
    amount = _amount(parse(budget) if budget else None, adapter, model)
    revised = _moved(found, gains, used, amount)
    listed = [replace(entry, spent=_norm(spectra, entry.site)) for entry in revised]
    return Plan(
        tuple(listed),
        budget=budget or f"{amount}",
        estimator=estimator,
        base=base(model, tuple(ground.session.fresh)),
        model=config.model,
        task=config.task,
        data=config.data,
        parameters=sum(entry.cost or 0 for entry in listed),
        of=summary(model, OWN).total,
        batches=len(ground.batches),
        examples=len(ground.shown),
        seconds=round(time.perf_counter() - began, 2),
        notes=(_told(found, used, deltas, revised), *_left(kinds, method.name)),
    )


def spectrum(delta: Delta) -> Tensor:
    """The singular values of the change that a site has learnt, over the rank of its factors."""
    method = delta.method
    assert isinstance(method, LowRank)
    with torch.no_grad():
        A, B = method.factors(Values(delta.tensors(), training=False))
        left, right = torch.linalg.qr(B.float()).R, torch.linalg.qr(A.float().mT).R
        return method.scale * torch.linalg.svdvals(left @ right.mT)


def effective_rank(values: Tensor) -> int:
    """The exponential of the entropy of singular values, rounded up; 0 of a change that is none."""
    if float(values.sum()) <= 0:
        return 0
    p = values / values.sum()
    entropy = -(p * p.clamp(min=1e-30).log()).sum()
    return min(math.ceil(float(entropy.exp()) - 1e-4), len(values))


def _considered(plan: dict | None) -> list[str]:
    """The sites that a plan has left out may come in again."""
    return [] if plan is None else [entry["site"] for entry in plan["sites"]]


def _amount(budget: Budget | None, adapter: Adapter, model: torch.nn.Module) -> int:
    tops = tuple(f"{name}." for name in heads(model))
    counted = summary(model, OWN)
    head = sum(n for site, n in counted.sites.items() if f"{site}.".startswith(tops))
    spent = counted.trainable - head
    return spent if budget is None else budget.parameters(counted.total, 4, head)


def _moved(
    found: list[Candidate], gains: list[Tensor], used: list[int], amount: int
) -> tuple[Entry, ...]:
    """What is used is worth more than anything that is promised, and is kept first."""
    top = 1 + max(float(gain.max()) for gain in gains)
    rows = []
    for candidate, gain, kept in zip(found, gains, used, strict=True):
        ranks = len(candidate.costs)
        kept = min(kept, ranks)
        first = torch.tensor(candidate.costs[:kept]) * top
        rows.append(torch.cat([first, gain[: ranks - kept]]))
    divided = entries(found, rows, amount)
    told = []
    for entry, gain, kept in zip(divided, gains, used, strict=True):
        beyond = max(0, (entry.rank or 0) - kept)
        promised = float(gain[:beyond].sum())
        told.append(replace(entry, gain=promised, sensitivity=float(gain.sum())))
    return tuple(told)


def _norm(spectra: dict[str, Tensor], site: str) -> float:
    return float(spectra[site].norm()) if site in spectra else 0.0


def _left(kinds: list[str], kept: str) -> list[str]:
    """Methods that shared the run's budget, and have no ranks to move."""
    others = [name for name in kinds if name not in (kept, Whole.name)]
    return [f"left out, and its budget given to {kept}: {', '.join(others)}"] if others else []


def _told(
    found: list[Candidate], used: list[int], deltas: dict[str, Delta], revised: tuple[Entry, ...]
) -> str:
    before = {
        site: delta.method.rank
        for site, delta in deltas.items()
        if isinstance(delta.method, LowRank)
    }
    changes = [(entry.rank or 0) - before.get(entry.site, 0) for entry in revised]
    idle = sum(before.get(c.site.name, 0) - u for c, u in zip(found, used, strict=True))
    return (
        f"of {sum(before.values())} ranks {idle} were not used (effective rank); "
        f"{sum(c for c in changes if c > 0)} were added at {sum(c > 0 for c in changes)} sites, "
        f"{-sum(c for c in changes if c < 0)} taken from {sum(c < 0 for c in changes)}"
    )
