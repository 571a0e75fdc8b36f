"""A saved adapter without its head: what another task can go on from.

An adapter that a run saved brings its head along, which answers that run's labels. Here its files
are read for a model whose head may be another, and the head's modules are told apart: those that
lie outside the pre-trained body (see `trimtab.core.heads`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trimtab.adapt import admit
from trimtab.core.adapter import Adapter, carries, record, unwrap
from trimtab.core.errors import InputError
from trimtab.core.heads import heads
from trimtab.core.method import Selection
from trimtab.match import sites
from trimtab.methods.whole import Whole
from trimtab.store import compositions, fingerprint, hf, native
from trimtab.store.verbs import place_read


@dataclass(frozen=True)
class Saved:
    """An adapter's files, read for one model: which method acts where, its tensors by the name
    that they are saved under, and what is remembered of its base."""

    folder: Path
    pairs: native.Pairs
    tensors: Mapping[str, Tensor]
    base: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        if not self.pairs:
            raise InputError(f"{self.folder} holds nothing but a head")


def read(model: nn.Module, folder: Path) -> Saved:
    """An adapter in Trimtab's format or in HF PEFT's; the model is not touched.

    Raises:
        InputError: no adapter there, a composition of several, or one that trains the base itself.
        AdapterMismatch: a site that this model has not.
    """
    known = {path: site for site in sites(model) for path in site.paths}
    if (folder / compositions.CONFIG).exists():
        raise InputError(f"{folder} holds several adapters: name the folder of one of them")
    if (folder / native.CONFIG).exists():
        config, tensors = native.read(folder)
        named = native.methods(config)
        if isinstance(named[0][1], Selection):
            raise InputError(
                f"{folder} is {named[0][1].name}, which trains the base itself: to go on from it, "
                "merge it into a model, and name that with --model"
            )
        pairs = native.locate(named, known, config["name"])
        native.check_digest(config, folder)
        return Saved(folder, pairs, tensors, config["base"])
    if (folder / hf.CONFIG).exists():
        config, tensors = hf.read(folder)
        remembered = hf.remembered(folder)
        pairs, renamed = hf.interpret(config, tensors, model, known, folder.name)
        return Saved(folder, pairs, renamed, remembered and remembered["base"])
    raise InputError(f"{folder} holds no adapter: neither {native.CONFIG} nor {hf.CONFIG} is there")


def without_head(model: nn.Module, saved: Saved) -> Saved:
    """The same adapter, less the modules of the head that it trained whole."""
    own = [
        site.name for site, method in saved.pairs if method.name == Whole.name and _of(model, site)
    ]
    prefixes = tuple(f"{name}.{Whole.name}." for name in own)
    return replace(
        saved,
        pairs=[(s, m) for s, m in saved.pairs if m.name != Whole.name or s.name not in own],
        tensors={key: t for key, t in saved.tensors.items() if not key.startswith(prefixes)},
    )


def _of(model: nn.Module, site: Any) -> bool:
    return any(f"{site.name}.".startswith(f"{top}.") for top in heads(model))


def check_base(model: nn.Module, saved: Saved) -> None:
    """Refuse an adapter of another base, whatever head either has. Files of HF PEFT's own remember
    nothing that could be compared."""
    if saved.base is None:
        return
    base, tops = unwrap(model), heads(model)
    originals = record(model).originals() if carries(model) else {}
    here = fingerprint.describe(base, set(), originals)
    body, own = (
        {n: one for n, one in of.items() if not any(n.startswith(f"{top}.") for top in tops)}
        for of in (saved.base["parameters"], here)
    )
    fingerprint.compare(body, own, str(saved.folder))


def place(model: nn.Module, folder: Path, name: str) -> Adapter:
    """Put the body of a saved adapter on a model, under this name; it does not train."""
    admit(model, name)
    saved = without_head(model, read(model, folder))
    check_base(model, saved)
    adapter = place_read(model, name, saved.pairs, saved.tensors)
    adapter.trainable = False
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    return adapter
