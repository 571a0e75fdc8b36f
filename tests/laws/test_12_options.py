"""No option is ignored in silence: alone, and beside every other way of setting another one, it
changes what is attached, computed, trained or pruned, or it is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core.method import Method
from trimtab.core.training import scheduled
from trimtab.match import sites
from trimtab.testing.architectures import Architecture

STEPS = 9
EQUAL = {
    ("rslora", "rank", 1): "the root of one is one",
    ("hashed", "length", 1): "every number is the one there is",
    ("seed", "length", 1): "every number is the one there is",
    **dict.fromkeys(
        [(option, "rank", 8) for option in ("tinit", "tfinal", "interval")],
        "of AdaLoRA: a budget that is the target from the start does not fall",
    ),
}
"""(option, beside another, at this value) -> why the law is the same there."""

Found = dict[str, Any]


class Net(nn.Module):
    """One map of each kind; all on the way to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(40, 32), nn.Conv1d(32, 32, 3, padding=1)
        self.first, self.last = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, ids: Tensor) -> Tensor:
        y = self.conv(self.embed(ids).mT).mT
        return self.last(torch.tanh(self.first(y)))


NET = Architecture(
    "net",
    Net,
    lambda: {"ids": torch.arange(40).view(2, 20)},
    lambda model, batch: model(**batch),
    lambda model, batch: (model(**batch) - 1).square().mean() + trimtab.penalty(model),
)
MODELS = (NET, cases.by_name("bert"), cases.by_name("t5"), cases.by_name("llama"))


def attach(method: Method, where: Architecture) -> tuple[Any, Any]:
    model = where.model()
    if method.base:
        trimtab.quantise(model, method.base)
    if "over" in method.needs:
        for name in "ab":
            cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=2), name=name))
    to = None
    if where is NET:
        plain = type(method)()
        to = [s.name for s in sites(model) if not (plain.accepts(s) or method.accepts(s))]
    return model, trimtab.attach(model, method, to or None)


def observe(method: Method, where: Architecture) -> Found | None:
    """All that can be seen of a method; None where it is refused."""
    torch.manual_seed(0)
    try:
        model, adapter = attach(method, where)
    except trimtab.InputError:
        return None
    found: Found = {
        "layout": [(n, t.shape, t.requires_grad) for n, t in adapter.tensors().items()],
        "rates": sorted(adapter.rates().values()),
        **_copies("start", adapter),
    }
    batch = where.batch()
    if "task_ids" in method.needs:
        ids = torch.arange(2) % getattr(method, "tasks", 2)
        facts: Any = functools.partial(trimtab.given, model, task_ids=ids)
    else:
        facts = contextlib.nullcontext
    if any(one.unready() for one in adapter.methods):
        trimtab.init.fisher(model, [batch], loss=where.loss)
    cases.perturb(adapter)
    with facts():
        found["outputs"] = where.outputs(model, batch)
        if where is not NET:
            states = model(**batch, output_hidden_states=True)
            found["shapes"] = [t.shape for t in states.values() if isinstance(t, Tensor)]
        model.train()
        runs = any(scheduled(one) for one in adapter.methods)
        optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
        for step in range(1, STEPS + 1 if runs else 2):
            torch.manual_seed(step)
            loss = where.loss(model, batch)
            found[f"loss {step}"] = loss.detach()
            if runs:
                loss.backward()
                trimtab.after_backward(model, step, STEPS)
                optimizer.step()
                optimizer.zero_grad()
    return {**found, **_copies("end", adapter)}


def _copies(when: str, adapter: Any) -> Found:
    return {f"{when} {name}": t.detach().clone() for name, t in adapter.tensors().items()}


def same(one: Found, other: Found) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(a, other[key]) if isinstance(a, Tensor) else a == other[key]
        for key, a in one.items()
    )


def values(method: Method, field: dataclasses.Field[Any]) -> Iterator[tuple[Any, Method]]:
    """The method with other values of one option, as far as they are not refused."""
    for value in _candidates(method, field):
        if value != getattr(method, field.name) or isinstance(value, bool):
            with contextlib.suppress(trimtab.InputError):
                yield value, dataclasses.replace(method, **{field.name: value})


def _candidates(method: Method, field: dataclasses.Field[Any]) -> Sequence[Any]:
    kind = str(field.type)
    if kind.startswith("bool"):
        return (not getattr(method, field.name),)
    if kind.startswith("tuple"):
        return (("a",),) if field.default == () else ((1, 2),)
    if kind.startswith("float"):
        return (0.1, 0.5, 2.0, 0.25, 4.0)
    if kind.startswith("int"):
        return (2, 3, 4, 8, 6, 1)
    try:  # words: the refusal of another one names them
        dataclasses.replace(method, **{field.name: "?"})
    except trimtab.InputError as error:
        return re.findall(r"\w+", str(error))
    return ()


def settings(method: Method) -> Iterator[tuple[str, Any, Method]]:
    """The method as it is, and with one option at each other word or switch, on where it is off, or
    at its least number: where other options may come to nothing."""
    yield "", None, method
    for field in dataclasses.fields(method):
        kind, default = str(field.type), field.default
        for value, other in values(method, field):
            yield field.name, value, other
            if kind in ("int", "float"):
                break
        if kind == "int" and default not in (0, 1):
            with contextlib.suppress(trimtab.InputError):
                yield field.name, 1, dataclasses.replace(method, **{field.name: 1})


def without_effect(method: Method, where: Architecture) -> tuple[list[str], set[str]]:
    """What is ignored in silence, and what had an effect somewhere or was refused."""
    ignored, heard = [], set()
    for beside, at, setting in settings(method):
        base = observe(setting, where)
        if base is None:
            continue
        for field in dataclasses.fields(method):
            if field.name == beside or (field.name, beside, at) in EQUAL:
                continue
            tried, others = None, list(values(setting, field))
            if not others:
                heard.add(field.name)
            for value, other in others:
                found = observe(other, where)
                if found is None:
                    heard.add(field.name)
                elif not same(base, found):
                    heard.add(field.name)
                    break
                else:
                    tried = value
            else:
                if tried is not None:
                    ignored.append(f"{field.name}={tried!r} beside {beside or 'all'}={at!r}")
    return ignored, heard


WITH_OPTIONS = [method for method in cases.METHODS if dataclasses.fields(method)]


@pytest.mark.parametrize("method", WITH_OPTIONS, ids=lambda method: method.name)
def test_every_option_acts_or_is_refused(method: Method) -> None:
    method = dataclasses.replace(method, over=("a", "b")) if "over" in method.needs else method
    where = next(one for one in MODELS if observe(method, one) is not None)
    ignored, heard = without_effect(method, where)
    assert ignored == []
    assert heard == {field.name for field in dataclasses.fields(method)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ignoring(trimtab.LoRA):
    """One option that nothing asks for, and one that counts beside another alone."""

    bits: int = 4
    noise: float = 0.0

    @property
    def scale(self) -> float:
        return super().scale + (self.noise if self.rslora else 0)


def test_control() -> None:
    ignored, heard = without_effect(Ignoring(), NET)
    assert {one.split("=")[0] for one in ignored} == {"bits", "noise"}
    assert "noise=4.0 beside all=None" in ignored
    assert not [one for one in ignored if one.startswith("noise") and "rslora" in one]
    assert heard == {field.name for field in dataclasses.fields(Ignoring)} - {"bits"}


REFUSED: dict[str, Any] = {
    'miss: mini=4 has an effect only with form="mini"': lambda: trimtab.MiSS(mini=4),
    'miss: start=.* only with form="balance"': lambda: trimtab.MiSS(
        form="mini", start="kaiming_uniform"
    ),
    'shira: seed=3 has an effect only with mask="random"': lambda: trimtab.SHiRA(
        mask="magnitude", seed=3
    ),
    'shira: rank=4 has an effect only where mask is not "nonzero"': lambda: trimtab.SHiRA(
        mask="nonzero", rank=4
    ),
    "randlora: sparse=True has an effect only without very_sparse": lambda: trimtab.RandLoRA(
        sparse=True, very_sparse=True
    ),
    "factor: rank=4 has an effect only with energy=0": lambda: trimtab.Factor(rank=4, energy=0.5),
    "pfeiffer: width=8 has an effect only with reduction=None, and that is 16": lambda: (
        trimtab.Pfeiffer(width=8)
    ),
    'p-tuning: layers=3 has an effect only with encoder="lstm"': lambda: trimtab.PTuning(layers=3),
    "oft: block=8 has an effect only with blocks=0": lambda: trimtab.OFT(block=8, blocks=2),
    "reft: tied=False has an effect only where both": lambda: trimtab.ReFT(first=0, tied=False),
    "factor: rank is 33, and 'first', 48 x 32, has 32 singular values": lambda: trimtab.attach(
        Net(), trimtab.Factor(rank=33), "first"
    ),
    "lokr: tucker=True has no effect: it takes a convolution": lambda: trimtab.attach(
        Net(), trimtab.LoKr(tucker=True), "first"
    ),
    "lora: dropout has no effect at embeddings": lambda: trimtab.attach(
        Net(), trimtab.LoRA(dropout=0.1), "embed"
    ),
    "fish: count is what trimtab.init.fisher": lambda: trimtab.attach(
        Net(), trimtab.Fish(count=5), "first"
    ),
    'shira: mask="data" is what trimtab.init.fisher': lambda: trimtab.attach(
        Net(), trimtab.SHiRA(mask="data"), "first"
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_have_no_effect_says_so(message: str) -> None:
    with pytest.raises(trimtab.InputError, match=message):
        REFUSED[message]()


def test_one_site_that_can_use_an_option_is_enough() -> None:
    """Dropout beside an embedding, a core beside a plain map."""
    trimtab.attach(Net(), trimtab.LoRA(dropout=0.1), ["embed", "first"])
    trimtab.attach(Net(), trimtab.LoKr(rank=2, tucker=True), ["conv", "first"])
