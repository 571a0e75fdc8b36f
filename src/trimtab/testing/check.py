"""`check_method`: a method held to every law, whoever wrote it."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from trimtab.core.errors import InputError, nearest
from trimtab.core.method import Method
from trimtab.testing.architectures import ARCHITECTURES, Architecture
from trimtab.testing.cover import rotate
from trimtab.testing.laws import LAWS, Law, counts
from trimtab.testing.laws.counts import Formula
from trimtab.testing.laws.quantised import over_base
from trimtab.testing.report import Report, Row
from trimtab.testing.trial import NotApplicable, NotHere


def check_method(
    method: Method | type[Method],
    architectures: Iterable[Architecture] | None = None,
    *,
    laws: Iterable[str] | None = None,
    parameters: Formula | None = None,
) -> Report:
    """Hold a method to the laws, and report what holds, what does not apply and what is broken.

    Args:
        method: a method, or its class, which is then tried with its defaults.
        architectures: on each of these every law is tried; left out, every law once, on the
            thirteen in turn, or on the next one that the method can act on.
        laws: the names of the laws to try, see `LAWS`; all, if left out.
        parameters: the paper's number of parameters, from the sites, for the law of counts.
    """
    one = method() if isinstance(method, type) and issubclass(method, Method) else method
    if not isinstance(one, Method):
        raise InputError(f"a method is an object such as trimtab.LoRA(rank=8), not {one!r}")
    chosen = [_formula(law, parameters) for law in _named(laws)]
    report = Report(repr(one))
    with own_random_numbers():
        if architectures is not None:
            for law in chosen:
                for where in architectures if law.over is ARCHITECTURES else law.over:
                    report.rows.append(row(one, law, where))
            return report
        for _, law, where in rotate([one], chosen, ARCHITECTURES):
            if law.over is ARCHITECTURES:
                report.rows.append(row(one, law, where, others=ARCHITECTURES))
            else:
                report.rows += [row(one, law, layer) for layer in law.over]
    return report


def _named(names: Iterable[str] | None) -> list[Law]:
    if names is None:
        return list(LAWS.values())
    wanted = list(names)
    for name in wanted:
        if name not in LAWS:
            raise InputError(f"no law is called {name!r}; {nearest(name, LAWS)}")
    return [LAWS[name] for name in wanted]


def _formula(law: Law, parameters: Formula | None) -> Law:
    if parameters is None or law.check is not counts.counts:
        return law
    check = functools.partial(counts.counts, parameters=parameters)
    return Law(law.name, law.number, law.says, check, law.over)


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """The laws draw the same numbers each time, and the caller's are left as they are."""
    before = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(before)


def row(method: Method, law: Law, where: Any, others: Sequence[Any] = ()) -> Row:
    """What is found of one law at one place, or at the first of `others` that can tell."""
    name = where.name
    try:
        name = hold(method, law, where, others).name
    except NotApplicable as reason:
        return Row(law.name, name, "not applicable", str(reason))
    except Exception as error:
        found = (
            str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        )
        return Row(law.name, name, "broken", found or "an assertion without a message")
    return Row(law.name, name, "holds")


def hold(method: Method, law: Law, where: Any, others: Sequence[Any] = ()) -> Any:
    """Check the law, and return where: at `where`, or, if that can tell nothing of this method, at
    the first place after it that can.

    Raises:
        AssertionError: the law is broken.
        NotApplicable: it has nothing to say of the method, here or anywhere.
    """
    start = others.index(where) if others else 0
    places = [*others[start:], *others[:start]] or [where]
    reason = NotHere("")
    for place in places:
        try:
            law.check(method.readied(), over_base(place, method.base))
        except NotHere as error:
            reason = reason if str(reason) else error
        else:
            return place
    raise reason
