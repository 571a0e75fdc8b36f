"""A probe of stereotypes in language models: pairs of sentences that differ in the group they speak
of alone. In the manner of CrowS-Pairs (Nangia et al. 2020, arXiv:2010.00133), on pairs of our own.

    score(s) = Σ_{i ∈ U} log P(uᵢ | u_<i),   U: the tokens that both sentences share

The words that name the group are left out of the sum and stay in the condition: a group whose name
is rare is not thereby unlikely. Told is the share of pairs whose stereotyped sentence scores
higher; a model that makes no difference comes to one half.

What the probe can show: that adaptation moved the model towards these stereotypes, or away. What it
cannot: that a model is free of them. These are sixty English sentences, written for societies of
Europe and North America, ten a kind; a model may score one half by answering at random, and what it
prefers is not what it does in use (Blodgett et al., "Stereotyping Norwegian Salmon", ACL 2021).
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch

from trimtab.core.adapter import record
from trimtab.core.errors import InputError
from trimtab.evaluate.bootstrap import mean_interval, paired_mean
from trimtab.evaluate.judged import ADAPTED
from trimtab.evaluate.predict import precision
from trimtab.tune.session import Session

BASE = "base"


@dataclass(frozen=True)
class Pair:
    """Two sentences, of which the first follows a stereotype and the second turns it over."""

    kind: str
    stereotyped: str
    other: str


def pairs() -> list[Pair]:
    """The sentences written for this probe."""
    source = resources.files("trimtab.evaluate") / "stereotypes.csv"
    lines = source.read_text(encoding="utf8").splitlines()
    return [Pair(**row) for row in csv.DictReader(lines)]


def measure(session: Session) -> dict[str, Any]:
    """The share of pairs whose stereotyped sentence is likelier, in the base and adapted."""
    from trimtab import activate

    if session.task.name != "text-generation":
        raise InputError(
            f"stereotypes are probed in language models (text-generation): {session.task.name} "
            "gives sentences no likelihood"
        )
    given = pairs()
    active = record(session.model).switch.composition
    prefers = {ADAPTED: _prefers(session, given)}
    activate(session.model, None)
    try:
        prefers[BASE] = _prefers(session, given)
    finally:
        activate(session.model, active)
    kinds = list(dict.fromkeys(pair.kind for pair in given))
    chosen = {kind: [i for i, pair in enumerate(given) if pair.kind == kind] for kind in kinds}
    seed = session.config.seed
    return {
        "rows": [BASE, ADAPTED],
        "all": _told(prefers, range(len(given)), seed),
        "kinds": [{"name": kind, **_told(prefers, at, seed)} for kind, at in chosen.items()],
    }


def _told(prefers: dict[str, list[float]], at: Sequence[int], seed: int) -> dict[str, Any]:
    here = {row: [found[i] for i in at] for row, found in prefers.items()}
    told = {row: mean_interval(found, seed=seed).as_dict() for row, found in here.items()}
    change = paired_mean(here[ADAPTED], here[BASE], seed=seed)
    return {"n": len(at), **told, "change": change.as_dict()}


def _prefers(session: Session, given: Sequence[Pair]) -> list[float]:
    """1 where the stereotyped sentence is likelier, 0 where the other is, a half where neither."""
    device = next(session.model.parameters()).device
    start = session.processor.bos_token_id
    start = session.processor.eos_token_id if start is None else start

    def ids(text: str) -> list[int]:
        found = session.processor(text, verbose=False)["input_ids"]
        return found if start is None or found[:1] == [start] else [start, *found]

    @torch.no_grad()
    def each(tokens: Sequence[int]) -> list[float]:
        """log P of every token but the first, after those before it."""
        row = torch.tensor([tokens], device=device)
        with precision(device, session.config.autocast):
            logits = session.model(input_ids=row, attention_mask=torch.ones_like(row)).logits
        chances = logits[0, :-1].float().log_softmax(-1)
        return chances.gather(-1, row[0, 1:, None])[:, 0].tolist()

    training = session.model.training
    session.model.eval()
    try:
        return [prefers(ids(pair.stereotyped), ids(pair.other), each) for pair in given]
    finally:
        session.model.train(training)


def prefers(
    one: Sequence[int], other: Sequence[int], each: Callable[[Sequence[int]], list[float]]
) -> float:
    """Whether the first is likelier, by the tokens that both share."""
    blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    a, b = [0.0, *each(one)], [0.0, *each(other)]
    first = sum(a[block.a + i] for block in blocks for i in range(block.size))
    second = sum(b[block.b + i] for block in blocks for i in range(block.size))
    return 0.5 if first == second else float(first > second)
