"""Checkpoints of loralib: a state dict of `lora_A` and `lora_B`, with what was trained beside them.

loralib keeps no configuration, so the scale is the caller's to say. Its fused maps (MergedLinear)
give each of their parts a rank of its own; here that is one update whose B is zero outside the
parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.core.method import Method
from trimtab.core.site import Site
from trimtab.match import sites
from trimtab.methods.bitfit import BitFit
from trimtab.methods.lora import LoRA
from trimtab.methods.whole import Whole
from trimtab.store.files import read_state_dict
from trimtab.store.native import saved_method
from trimtab.store.verbs import place_read, set_trainable

Pairs = list[tuple[Site, Method]]


def interpret(
    state: Mapping[str, Tensor],
    model: nn.Module,
    *,
    alpha: float,
    enabled: Sequence[bool] | None = None,
) -> tuple[Pairs, dict[str, Tensor]]:
    """(site, method) pairs, and the tensors under Trimtab's names.

    Args:
        alpha: loralib's `lora_alpha`.
        enabled: loralib's `enable_lora`: which parts of a fused map were adapted.
    """
    known = {path: site for site in sites(model) for path in site.paths}
    pairs: dict[tuple[str, str], tuple[Site, Method]] = {}
    tensors: dict[str, Tensor] = {}

    def put(site: Site, method: Method, named: Mapping[str, Tensor]) -> None:
        if reason := method.accepts(site):
            raise AdapterMismatch(f"{method.name} cannot act at {site.name!r}: {reason}")
        pairs[site.name, method.name] = (site, method)
        tensors.update({f"{site.name}.{method.name}.{key}": t for key, t in named.items()})

    state = _strip(state)
    for key, A in state.items():
        path, _, leaf = key.rpartition(".")
        site = _site(known, path, key)
        if leaf == "lora_A":
            B = state.get(f"{path}.lora_B")
            if B is None:
                raise AdapterMismatch(f"{key!r} has no {path + '.lora_B'!r} beside it")
            rank, A, B = _dense(site, A, B, enabled)
            at_all = {"rank": A.shape[0], "alpha": alpha * A.shape[0] / rank}
            put(site, saved_method(LoRA.name, at_all), {"A": A, "B": B})
        elif leaf == "lora_B":
            if f"{path}.lora_A" not in state:
                raise AdapterMismatch(f"{key!r} has no {path + '.lora_A'!r} beside it")
        elif not _is_bases(site, leaf, A):
            put(site, *_trained(site, state, path, leaf, A))
    if not any(isinstance(method, LoRA) for _, method in pairs.values()):
        raise AdapterMismatch("the state dict holds no lora_A: it is none of loralib's")
    order = {site.name: index for index, site in enumerate(known.values())}
    return sorted(pairs.values(), key=lambda pair: order[pair[0].name]), tensors


def _strip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that data parallelism puts before every name."""
    if state and all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return dict(state)


def _site(known: Mapping[str, Site], path: str, key: str) -> Site:
    if path not in known:
        raise AdapterMismatch(
            f"the tensor {key!r} belongs to {path!r}, which this model has not: loralib's names "
            "are those of the model that it was saved from"
        )
    return known[path]


def _dense(
    site: Site, A: Tensor, B: Tensor, enabled: Sequence[bool] | None
) -> tuple[int, Tensor, Tensor]:
    """(rank of each part, A, B) as matrices (parts * rank, in) and (out, parts * rank)."""
    if A.ndim != 2 or B.ndim != 2 or not A.numel() or not B.numel():
        raise AdapterMismatch(
            f"{site.name!r}: lora_A and lora_B must be matrices, and have shapes "
            f"{tuple(A.shape)} and {tuple(B.shape)}"
        )
    rank = B.shape[1]
    if A.shape[0] == rank and B.shape[0] == site.out_features:
        return rank, A, B
    if enabled is None:
        raise InputError(
            f"{site.name!r} is one of loralib's fused maps (lora_A {tuple(A.shape)}, lora_B "
            f"{tuple(B.shape)}): say which of its parts were adapted, as its enable_lora did: "
            "enabled=[True, False, True]"
        )
    parts, adapted = len(enabled), [i for i, on in enumerate(enabled) if on]
    if not adapted or site.out_features % parts:
        raise InputError(
            f"enabled={list(enabled)!r} does not divide {site.name!r} with {site.out_features} rows"
        )
    width = site.out_features // parts
    wanted = (rank * len(adapted), site.in_features), (width * len(adapted), rank)
    if (tuple(A.shape), tuple(B.shape)) != wanted:
        raise AdapterMismatch(
            f"{site.name!r}: lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)} do not fit "
            f"enabled={list(enabled)!r}, which needs {wanted[0]} and {wanted[1]}"
        )
    whole = B.new_zeros(site.out_features, A.shape[0])
    for at, part in enumerate(adapted):
        rows, columns = slice(part * width, (part + 1) * width), slice(at * rank, (at + 1) * rank)
        whole[rows, columns] = B[at * width : (at + 1) * width]
    return rank, A, whole


def _is_bases(site: Site, leaf: str, tensor: Tensor) -> bool:
    """Whether a whole checkpoint says what the base holds anyhow."""
    own = getattr(site.module, leaf, None)
    if not isinstance(own, Tensor):
        raise AdapterMismatch(f"{site.name!r} has no tensor {leaf!r} in this model")
    return own.shape == tensor.shape and torch.equal(own.detach().cpu(), tensor)


def _trained(
    site: Site, state: Mapping[str, Tensor], path: str, leaf: str, tensor: Tensor
) -> tuple[Method, dict[str, Tensor]]:
    """A bias that was trained, or a module that was trained whole, such as a head."""
    own = dict(site.module.named_parameters(recurse=False))
    key, weight = f"{path}.{leaf}", state.get(f"{path}.weight")
    if leaf not in own or tensor.shape != own[leaf].shape:
        raise AdapterMismatch(f"{key!r} has shape {tuple(tensor.shape)}, which does not fit here")
    if leaf == "bias" and (weight is None or _is_bases(site, "weight", weight)):
        return BitFit(), {"c": tensor.float() - own["bias"].detach().cpu().float()}
    if f"{path}.lora_A" in state:
        raise AdapterMismatch(
            f"{key!r} differs from this model's, and has an update beside it: this is another "
            "base, or the checkpoint was saved while merged (loralib merges in eval mode)"
        )
    return Whole(), {name: state.get(f"{path}.{name}", t.detach()) for name, t in own.items()}


def load(
    model: nn.Module,
    path: str | Path,
    *,
    alpha: float,
    enabled: Sequence[bool] | None = None,
    name: str = "loralib",
    trainable: bool = False,
) -> Adapter:
    """Put a checkpoint of loralib on a model and make it the active adapter.

    Args:
        alpha, enabled: see `interpret`.
        name: what to call it here.
        trainable: whether its parameters go on training.
    """
    pairs, tensors = interpret(read_state_dict(path), model, alpha=alpha, enabled=enabled)
    return set_trainable(place_read(model, name, pairs, tensors), trainable)
