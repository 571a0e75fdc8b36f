"""From the files to sites, methods and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.core.method import Method, Names, Prefix, Prompt
from trimtab.core.registry import lookup
from trimtab.core.site import Site
from trimtab.methods.whole import Whole
from trimtab.place import build
from trimtab.store import native
from trimtab.store.files import parse_json, read_json, read_metadata, read_tensors
from trimtab.store.hf import anchors, parameters, prompts, pruned
from trimtab.store.hf.fields import BIASES, CONFIG, ROWS, START, TOKENS, arguments, chosen
from trimtab.store.hf.renames import Renames
from trimtab.store.hf.targets import is_target, linears, modules, saved, tied, token_ids

TENSORS = "adapter_model.safetensors"
_SECOND = (".original_module", ".modules_to_save")
PREFIX, ROOT = "base_model.model.", "base_model."
TOKEN_LEAF = "token_adapter.trainable_tokens_delta"

REMEMBERED = "trimtab"  # the metadata's key; in the configuration HF PEFT would warn of it

Pairs = list[tuple[Site, Method]]


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return read_json(folder / CONFIG), read_tensors(folder / TENSORS)


def remembered(folder: Path, tensors: str = TENSORS) -> dict[str, Any] | None:
    """The adapter's name and base, where Trimtab wrote the file: that format has no place for
    them but beside the tensors.
    """
    where = folder / tensors
    text = read_metadata(where).get(REMEMBERED)
    if text is None:
        return None
    found = parse_json(text, f"{where}: {REMEMBERED!r}")
    if not isinstance(found.get("name"), str) or not isinstance(found.get("base"), dict):
        raise InputError(f"{where}: {REMEMBERED!r} must have a 'name' and a 'base'")
    native.check_base(found["base"], where)
    return found


def interpret(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    known: Mapping[str, Site],
    adapter: str,
) -> tuple[Pairs, dict[str, Tensor]]:
    """(site, method) pairs, and the tensors under Trimtab's names."""
    cls, names = chosen(config)
    if issubclass(cls, Prompt | Prefix):
        return prompts.interpret(config, tensors, (cls, names), model, known, adapter)
    order = list(known.values())
    every = list({id(site): site for site in known.values()}.values())
    by_name = parameters.named(config, cls, names, every)
    wholes = {id(site) for site in modules(known.values())}
    known = {path: site for path, site in known.items() if id(site) in wholes}
    by_path = {one.path: one for one in by_name}
    if names.form:
        tensors = names.form.read(config, tensors)
    reading = _Reading(config, cls, names, known, by_path, order, Renames(model), adapter)
    for key, tensor in tensors.items():
        reading.take(key, tensor)
    reading.take_shifts()
    targeted = linears(model, known.values(), config.get("task_type"))
    reading.take_drawn(targeted)
    reading.restore(model)
    reading.require_targets(targeted)
    reading.require_biases()
    if not reading.pairs:
        raise AdapterMismatch(f"adapter {adapter!r} has no tensors")
    return reading.ordered(), reading.tensors


@dataclass
class _Reading:
    """One adapter's files, as far as they have been read."""

    config: Mapping[str, Any]
    cls: type[Method]
    names: Names
    known: Mapping[str, Site]
    by_path: Mapping[str, parameters.Parameter]
    order: Sequence[Site]
    renames: Renames
    adapter: str

    def __post_init__(self) -> None:
        self.pairs: dict[tuple[str, str], tuple[Site, Method]] = {}
        self.tensors: dict[str, Tensor] = {}
        self.paths: dict[str, str] = {}
        self.shifts: list[tuple[str, Site, Tensor, bool]] = []

    def take(self, key: str, tensor: Tensor) -> None:
        for own, theirs in self.names.common.items():
            copied = self.names.repeated and key.endswith(f".{theirs}")
            if key == f"{ROOT}{theirs}" or copied:
                held = self.tensors.setdefault(f"shared.{self.cls.name}.{own}", tensor)
                if not torch.equal(held, tensor):
                    raise AdapterMismatch(
                        f"adapter {self.adapter!r}: {key!r} is not what the other sites have"
                    )
                return
        path, leaf, ours = _split(key, self.names)
        if ours and path in self.by_path and key.endswith(f".{self.names.tensors[leaf]}"):
            self._by_name(key, self.by_path[path], leaf, tensor)
            return
        whole = saved(path, self.config.get("modules_to_save") or ())
        if whole and self.config.get("bias") == "all" and path.endswith(_SECOND):
            return  # with bias="all" a saved module's bias is written three times
        site = self._site(key, path)
        if ours and self.cls.name == ROWS:
            self._rows(site, self.config.get("token_indices"), tensor)
        elif ours and leaf in self.names.tensors_at(site.geometry.kind):
            tensor = self._shaped(site, leaf, tensor)
            at_site = {**self._orientation(tensor), **self._anchor(site)}
            method = arguments(self.config, self.cls, self.names, path, **at_site)
            self._put(site, method, leaf, tensor)
            self.paths[site.name] = path
        elif leaf == TOKEN_LEAF and self.names.tokens:
            rows = token_ids(self.config, path, site)
            if rows is None:
                raise AdapterMismatch(f"{CONFIG}: {TOKENS} says nothing of {path!r}")
            self._rows(site, rows, tensor)
        elif leaf == self.names.shift and self.config.get("lora_bias"):
            self.shifts.append((path, site, tensor, True))
        elif whole:
            self._put(site, Whole(), leaf, tensor)
        elif leaf == "bias" and self.config.get("bias") in ("all", self.names.biases):
            self.shifts.append((path, site, tensor, False))
        else:
            raise AdapterMismatch(
                f"adapter {self.adapter!r} has a tensor {key!r} that belongs to no site"
            )

    def _by_name(self, key: str, at: parameters.Parameter, own: str, tensor: Tensor) -> None:
        method = arguments(self.config, self.cls, self.names, at.key)
        shape = parameters.shape(at.site, own, method.rank)  # type: ignore[attr-defined]
        if tuple(tensor.shape) != shape:
            count = at.site.geometry.count
            raise AdapterMismatch(
                f"adapter {self.adapter!r}: the tensor {key!r}, for {at.key!r}, has shape "
                f"{tuple(tensor.shape)}, and must have {shape} here"
                + (f", where there are {count} experts" if count else "")
            )
        self._put(at.site, method, *parameters.taken(at.site, own, tensor))

    def _rows(self, site: Site, rows: Any, tensor: Tensor) -> None:
        """Tokens of an embedding act at all that is tied to it, too; there, files of tokens alone
        hold them twice.
        """
        every = tied(site, self.known.values())
        if len(every) == 1:
            self._put(site, native.saved_method(ROWS, {"rows": rows}), "t", tensor)
            return
        key = f"shared.{ROWS}.t"
        if key in self.tensors and not torch.equal(self.tensors[key], tensor):
            raise AdapterMismatch(
                f"adapter {self.adapter!r}: the tokens of {site.name!r} differ from those that it "
                "is tied to"
            )
        for one in every:
            method = native.saved_method(ROWS, {"rows": rows, "tied": True})
            self.pairs.setdefault((one.name, ROWS), (one, method))
        self.tensors[key] = tensor

    def _site(self, key: str, path: str) -> Site:
        site = self.known.get(path) or self.known.get(self.renames.current(path))
        if site is None:
            raise AdapterMismatch(
                f"adapter {self.adapter!r}: the tensor {key!r} belongs to {path!r}, which this "
                "model has not"
            )
        return site

    def _shaped(self, site: Site, own: str, tensor: Tensor) -> Tensor:
        """Matrices and vectors, whatever shape convolutions have there."""
        conv = site.geometry.kind == "conv"
        if conv and own in self.names.rows and tensor.ndim == 2 and tensor.shape[0] == 1:
            return tensor[0]
        if own in self.names.columns and tensor.ndim == 2 and tensor.shape[1] == 1:
            return tensor[:, 0]
        if conv and own in self.names.channels and tensor.numel() == site.out_features:
            return tensor.flatten()
        reads = conv and (self.names.patches or own in self.names.kernels)
        return tensor.flatten(1) if reads and tensor.ndim > 1 else tensor

    def _orientation(self, tensor: Tensor) -> dict[str, str]:
        if not self.names.oriented:
            return {}
        return {"scales": "input" if tensor.ndim == 2 and tensor.shape[0] == 1 else "output"}

    def _anchor(self, site: Site) -> dict[str, bool]:
        """Factors that are relative to a base from which their start was taken."""
        if self.config.get(START) not in self.names.starts:
            return {}
        if site.geometry.kind != "linear":
            raise InputError(
                f"{CONFIG}: {START}={self.config[START]!r} has no meaning at {site.name!r}, which "
                f"is {site.geometry.kind}"
            )
        return {"anchored": True}

    def _put(self, site: Site, method: Method, own: str, tensor: Tensor) -> None:
        reason = method.accepts(site)
        if reason:
            raise AdapterMismatch(
                f"adapter {self.adapter!r}: {method.name} cannot act at {site.name!r}: {reason}"
            )
        own_law = isinstance(method, self.cls)
        if own_law and (why := self.names.differs(method, site.geometry, site.module)):
            raise AdapterMismatch(
                f"adapter {self.adapter!r}: {self.names.peft_type} at {site.name!r} is another law "
                f"than {method.name}: {why}"
            )
        name = f"{site.name}.{method.name}.{own}"
        if name in self.tensors:
            raise AdapterMismatch(
                f"adapter {self.adapter!r} has two tensors for {name!r}: one under the module's "
                "old name, one under its new name"
            )
        self.pairs.setdefault((site.name, method.name), (site, method))
        self.tensors[name] = tensor

    def take_shifts(self) -> None:
        """Biases, after everything else: whole ones as their difference from the base's, those of
        the update times its scale.
        """
        found: dict[str, tuple[Site, Tensor]] = {}
        for path, site, tensor, scaled in self.shifts:
            bias, shape = site.bias, (site.out_features,)
            if bias is not None and tuple(bias.shape) == shape != tuple(tensor.shape):
                raise AdapterMismatch(
                    f"adapter {self.adapter!r}: the bias of {path!r} has shape "
                    f"{tuple(tensor.shape)}, and must have {shape} here"
                )
            shift = tensor.detach().to(torch.float32)
            if scaled:
                method = arguments(self.config, self.cls, self.names, path)
                shift = shift * method.scale  # type: ignore[attr-defined]
            elif bias is not None:
                shift = shift - bias.detach().to("cpu", torch.float32)
            before = found[site.name][1] if site.name in found else torch.zeros_like(shift)
            found[site.name] = (site, before + shift)
        for site, shift in found.values():
            self._put(site, lookup(BIASES)(), "c", shift)

    @property
    def left_out(self) -> set[str]:
        """The tensors that the file leaves out, to be drawn again."""
        saved = self.names.saved
        return set(self.names.drawn) if saved and self.config.get(saved) is False else set()

    def take_drawn(self, all_linear: set[str]) -> None:
        """The targets, where a file leaves out all that their sites hold."""
        if not self.left_out or not self.names.tensors.keys() <= self.left_out:
            return
        for path, site in self.known.items():
            method = arguments(self.config, self.cls, self.names, path)
            former = self.renames.former(path)
            named = any(is_target(self.config, name, all_linear) for name in (path, former))
            if named and self.names.tensors_at(site.geometry.kind) and not method.accepts(site):
                self.pairs.setdefault((site.name, method.name), (site, method))

    def ordered(self) -> Pairs:
        """The pairs in the model's order."""
        order = {site.name: index for index, site in enumerate(self.order)}
        return sorted(self.pairs.values(), key=lambda pair: order[pair[0].name])

    def restore(self, model: nn.Module) -> None:
        """What the file leaves out, because it follows from the configuration."""
        acting = [(s, m) for s, m in self.ordered() if isinstance(m, self.cls)]
        if self.names.masked:
            for site, method in acting:
                pruned.spread(
                    self.config, self.names, site, self.paths[site.name], method, self.tensors
                )
        anchors.restore(model, self.config.get(START), acting, self.tensors)
        missing = {*self.names.state, *self.left_out}
        if not acting or not missing:
            return
        with torch.random.fork_rng(devices=[]):
            fresh = native.held(build(model, acting))
        for key, tensor in fresh.items():
            if key.rpartition(".")[2] in missing:
                self.tensors.setdefault(key, tensor)

    def require_targets(self, all_linear: set[str]) -> None:
        """Every module that the configuration names must have its tensors."""
        for path, site in self.known.items():
            taken = {method.name for at, method in self.pairs.values() if at.name == site.name}
            kind = site.geometry.kind
            acts = kind in self.cls.kinds and self.names.tensors_at(kind)
            if taken - {BIASES, ROWS if self.names.tokens else ""} or not acts:
                continue
            if any(
                is_target(self.config, name, all_linear)
                for name in (path, self.renames.former(path))
            ):
                raise AdapterMismatch(
                    f"adapter {self.adapter!r} misses the tensors of its target {path!r}"
                )
        acting = {at for at, name in self.pairs if name == self.cls.name}
        for one in self.by_path.values():
            if one.site.name not in acting:
                raise AdapterMismatch(
                    f"adapter {self.adapter!r} misses the tensors of its target {one.key!r}, which "
                    f"would lie at {one.path!r}"
                )

    def require_biases(self) -> None:
        """Every bias that the configuration says was trained must be there."""
        everywhere = self.config.get("bias") == "all"
        only = self.names.biases and self.config.get("bias") == self.names.biases
        at_targets = only or self.config.get("lora_bias")
        for path, site in self.known.items():
            here = {name for at, name in self.pairs if at == site.name}
            due = everywhere or (at_targets and self.cls.name in here)
            if due and not here & {BIASES, Whole.name} and not lookup(BIASES)().accepts(site):
                raise AdapterMismatch(
                    f"adapter {self.adapter!r} misses the bias of {path!r}, which was trained "
                    f"(bias={self.config.get('bias')!r})"
                )


def _split(key: str, names: Names) -> tuple[str, str, bool]:
    """A tensor's key there -> (module, our name of the tensor or what else it is, whether it is
    one of the method's).
    """
    path = key.removeprefix(PREFIX)
    every = [*names.tensors.items(), *(pair for one in names.at.values() for pair in one.items())]
    for own, theirs in every:
        for ending in (f".{theirs}", f".{theirs}.weight"):  # of which versions leave the latter out
            if path.endswith(ending):
                return path.removesuffix(ending), own, True
    for other in (names.shift, TOKEN_LEAF):
        if other is not None and path.endswith(f".{other}"):
            return path.removesuffix(f".{other}"), other, False
    module, _, leaf = path.rpartition(".")
    return module.removesuffix(".base_layer"), leaf, False
