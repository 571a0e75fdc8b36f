"""What each method can do, found by trying it: the table of `trimtab methods`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from trimtab import LoRA
from trimtab.adapt import activate, attach
from trimtab.core.call import given
from trimtab.core.compose import Mix
from trimtab.core.counts import summary
from trimtab.core.errors import TrimtabError
from trimtab.core.method import Combine, Composite, Method, Selection
from trimtab.core.registry import lookup, methods
from trimtab.core.training import parameters
from trimtab.match import sites
from trimtab.quant import FORMATS, quantise
from trimtab.recipes import RECIPES
from trimtab.testing.architectures import ARCHITECTURES, BERT, Architecture
from trimtab.testing.check import hold, own_random_numbers
from trimtab.testing.laws import LAWS, Law
from trimtab.testing.laws.quantised import over_base
from trimtab.testing.layers import LAYERS
from trimtab.testing.trial import PARTS, NotApplicable, Trial, assert_near, perturb

WIDTH = 768  # of the site at which parameters are counted

LAYER: dict[str, tuple[str, tuple[str, ...]]] = {
    "Linear": ("Linear", ("query",)),
    "Conv1D": ("transformers' Conv1D", ("query",)),
    "Embedding": ("Embedding", ("words",)),
    "Conv1d": ("Conv1d", ("conv",)),
    "Conv2d": ("Conv2d", ("conv",)),
    "LayerNorm": ("LayerNorm", ("norm",)),
    "fused part": ("fused qkv", ("query", "value")),
    "MultiheadAttention": ("MultiheadAttention", ("query", "value", "out_proj")),
}
"""What a method may act on -> the model of one such layer, and what to name there."""

OUTPUT = "sublayer output"
SITES = ("stack", "attention", "block")
"""What it may act on in a transformer beside its maps, as the kind of the site."""

SINGLE: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(WIDTH, WIDTH),
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "Embedding": lambda: nn.Embedding(WIDTH, WIDTH),
}
TRANSFORMER = "BERT, 2 blocks of width 768"


def table() -> dict[str, dict[str, Any]]:
    """Every registered method: what it acts on, what can be done with it, files, cost."""
    return dict(rows(methods()))


def rows(names: Iterable[str], jobs: int = 1) -> Iterator[tuple[str, dict[str, Any]]]:
    """(method, its row), each as soon as it is found, in `jobs` processes; the same whichever
    others are asked for."""
    classes = {name: lookup(name) for name in names}
    if jobs == 1:
        yield from ((name, _row(cls)) for name, cls in classes.items())
        return
    local = {name for name, cls in classes.items() if "<locals>" in cls.__qualname__}
    shared = [cls for name, cls in classes.items() if name not in local]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        found = pool.map(_row, shared)
        yield from ((n, _row(cls) if n in local else next(found)) for n, cls in classes.items())


def _row(cls: type[Method]) -> dict[str, Any]:
    with _undisturbed():
        return capabilities(cls())


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """For tiny models: random numbers of their own, one thread, for several would only wait for
    each other, and no word from libraries of quantised maps on what they could not load."""
    threads = torch.get_num_threads()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    try:
        with own_random_numbers():
            yield
    finally:
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)


def recipes() -> dict[str, dict[str, Any]]:
    """Every recipe: a way of training some method, or any, and no method itself."""
    return {
        name: {"kind": "recipe", **dataclasses.asdict(one)} for name, one in sorted(RECIPES.items())
    }


def capabilities(method: Method) -> dict[str, Any]:
    """One method's row."""
    selects = isinstance(method, Selection)
    layers = [] if selects else _merged(_layers(part) for part in method.parts())
    count, where = (None, None) if selects else _count(method, layers)
    return {
        "paper": method.paper or None,
        "kind": _kind(method),
        "targets": _merged(part.targets for part in method.parts()),
        "layers": layers,
        "mergeable": _holds(method, LAWS["merge"]),
        "stackable": not selects and _holds(method, LAWS["stack"]),
        "routable": not selects and _holds(method, LAWS["route"]),
        "mixable": not selects and _holds(method, MIX),
        "quantised": _quantised(method),
        "needs": sorted(method.needs),
        "hf_peft": method.hf.peft_type if method.hf else None,
        "parameters": count,
        "parameters_at": where,
        "learning_rate": method.learning_rate,
        "options": {field.name: field.default for field in dataclasses.fields(method)},
    }


def _merged(lists: Iterable[Iterable[str]]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(one for ones in lists for one in ones))


def _kind(method: Method) -> str:
    """The kind of law, as its class in `core.method` is called; a law of its own kind by name."""
    core = (c for c in type(method).__mro__ if c.__module__ == Method.__module__)
    base = next(c for c in core if "forward" in c.__dict__)  # and no option that several kinds have
    return method.name if base is Method else base.__name__.lower()


def _holds(method: Method, law: Law, places: Sequence[Architecture] = ARCHITECTURES) -> bool:
    """Whether the law holds in the first architecture that can tell."""
    try:
        hold(method, law, places[0], places)
    except (AssertionError, *_REFUSED):
        return False
    return True


def _quantised(method: Method) -> list[str]:
    """The formats of a base over which it is what it is over a plain one."""
    law = LAWS["quantised"]
    return [where.name for where in law.over if _holds(method, law, (where,))]


def _halves_make_a_whole(method: Method, architecture: Architecture) -> None:
    trial = Trial(method, architecture)
    for name in ("a", "b"):
        torch.manual_seed(0)  # the same fixed tensors
        trial.perturbed(name)
    activate(trial.model, "a")
    alone = trial.outputs()
    activate(trial.model, Mix(a=0.5, b=0.5))
    assert_near(trial.outputs(), alone, "two halves against one")


MIX = Law("mix", 7, "two halves of the same make it whole", _halves_make_a_whole)
_REFUSED = (TrimtabError, RuntimeError, NotImplementedError, NotApplicable)


def _layers(method: Method) -> Iterator[str]:
    """What it acts on: attached there, it changes the output."""
    anywhere = False  # at a map wherever it is, its sublayer's output included
    for name, (layer, targets) in LAYER.items():
        model = next(one.model for one in LAYERS if one.name == layer)
        if any(_acts(method, model, target) for target in targets):
            anywhere |= name == "Linear"
            yield name
    standard = ARCHITECTURES[0]
    for kind, names in _places().items():
        if not (anywhere and kind == OUTPUT) and any(
            _acts(method, standard, name) for name in names
        ):
            yield kind


@functools.cache
def _places() -> dict[str, list[str]]:
    """What it may act on in a transformer -> targets there: a site of the kind, or a role."""
    known = sites(ARCHITECTURES[0].model())
    kinds = {kind: [s.name for s in known if s.geometry.kind == kind] for kind in SITES}
    few = {kind: names[:1] + names[-1:] for kind, names in kinds.items()}
    return {OUTPUT: ["attention-output", "mlp-output"], **few}


def _acts(method: Method, architecture: Architecture, target: str) -> bool:
    architecture = over_base(architecture, method.base)
    batch = architecture.batch()
    try:
        model = architecture.model()
        attached(method.readied(), model, target)
        before = _outputs(method, architecture, model, batch)
        with torch.no_grad():
            for parameter in parameters(model):
                parameter.add_(0.1 * torch.randn_like(parameter))
        return not torch.equal(before, _outputs(method, architecture, model, batch))
    except _REFUSED:
        return False


def attached(method: Method, model: nn.Module, target: str | None) -> None:
    """The method there; one that combines adapters over two of LoRA there."""
    if not isinstance(method, Combine):
        attach(model, method, to=target, name="probe")
        return
    for seed, name in enumerate(PARTS):
        perturb(attach(model, LoRA(rank=2), to=target, name=name), seed)
    activate(model, None)
    attach(model, dataclasses.replace(method, over=PARTS), name="probe")


def _outputs(
    method: Method, architecture: Architecture, model: nn.Module, batch: dict[str, Any]
) -> Tensor:
    if "task_ids" not in method.needs:
        return architecture.outputs(model, batch)
    count = len(next(iter(batch.values())))
    with given(model, task_ids=torch.zeros(count, dtype=torch.long)):
        return architecture.outputs(model, batch)


def _count(method: Method, layers: Sequence[str]) -> tuple[int | None, str | None]:
    """Trained parameters at one site of the standard width where it can act on one alone, and in a
    transformer of that width at its own targets otherwise; and which of the two.
    """
    alone = [] if isinstance(method, Composite) else layers
    single = next((name for name in SINGLE if name in alone), None)
    if single is not None:
        model = nn.Sequential(SINGLE[single]())
        if method.base is not None:
            quantise(model, method.base, skip=())
        attached(method, model, "0")
        return summary(model, "probe").trainable, f"{single}, {WIDTH}"
    trial = Trial(method, Architecture("standard", standard, dict))
    trial.attach()
    return summary(trial.model, "default").trainable, TRANSFORMER


def standard() -> nn.Module:
    """The tiny BERT with the width of a usual one."""
    from transformers import BertConfig, BertForSequenceClassification

    wide = {"hidden_size": WIDTH, "num_attention_heads": 12, "intermediate_size": 4 * WIDTH}
    wide |= {"max_position_embeddings": 512}
    return BertForSequenceClassification(BertConfig(**{**BERT, **wide}))


HEAD = (
    "method",
    "kind",
    "targets",
    "acts on",
    "can be",
    "quantised bases",
    "needs",
    "HF PEFT",
    f"parameters at {WIDTH}",
    "lr",
)


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """A row of the table as words, in the order of `HEAD`."""
    words = {"mergeable": "merged", "stackable": "stacked", "routable": "routed"}
    can = [word for key, word in {**words, "mixable": "mixed"}.items() if row[key]]
    mark = "*" if row["parameters_at"] == TRANSFORMER else ""
    return [
        name,
        row["kind"],
        ", ".join(row["targets"]) or "–",
        ", ".join(row["layers"]) or "the base's own parameters",
        ", ".join(can) or "–",
        "all" if len(row["quantised"]) == len(FORMATS) else ", ".join(row["quantised"]) or "–",
        ", ".join(row["needs"]) or "–",
        row["hf_peft"] or "–",
        f"{row['parameters']:,}{mark}" if row["parameters"] is not None else "–",
        f"{row['learning_rate']:g}",
    ]


NOTE = f"* in a transformer ({TRANSFORMER}), at the method's own targets; others: at one site"
