"""Prompts and prefixes: one tensor, `prompt_embeddings`, and the modules that are saved whole.

A prompt's is (positions, width); an encoder-decoder's may have as many rows again for its decoder,
which HF PEFT uses for prompts by task alone. What makes it another prompt for each task stands
beside it, by `Names.tensors`. A prefix's is (positions, layers · 2 · width), keys and values of one
layer after the other; an encoder-decoder's are dealt out twice, to its decoder's self-attentions
and to attentions over the encoder, and the latter are dropped: layer i has the pair 2i, modulo the
number of layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.call import Call
from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.core.host import Host
from trimtab.core.method import Method, Names, Prefix
from trimtab.core.site import Site
from trimtab.methods.whole import Whole
from trimtab.store.hf.fields import arguments
from trimtab.store.hf.targets import heads, saved

KEY, ROOT = "prompt_embeddings", "base_model."
_READ = {"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"}
"""Tasks whose heads read positions of an encoder, the prompt's own among them."""

Pairs = list[tuple[Site, Method]]


def interpret(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    chosen: tuple[type[Method], Names],
    model: nn.Module,
    known: Mapping[str, Site],
    adapter: str,
) -> tuple[Pairs, dict[str, Tensor]]:
    """(site, method) pairs, and the tensors under Trimtab's names."""
    cls, names = chosen
    prompts = tensors.get(KEY)
    if prompts is None or prompts.ndim != 2:
        raise AdapterMismatch(f"adapter {adapter!r} misses its {KEY!r}, a matrix")
    if issubclass(cls, Prefix):
        method = arguments(config, cls, names, "")
        pairs, found = _prefix(config, prompts, method, model, known, adapter)
    else:
        keep = {"keep": True} if _read_by_head(model, config.get("task_type")) else {}
        method = arguments(config, cls, names, "", **keep)
        pairs, found = _prompt(tensors, method, names, known, adapter)
    for key, tensor in tensors.items():
        path, _, leaf = key.removeprefix(ROOT).rpartition(".")
        if key in {KEY, *names.tensors.values()}:
            continue
        if path not in known or not saved(path, config.get("modules_to_save") or ()):
            raise AdapterMismatch(f"adapter {adapter!r} has a tensor {key!r} that belongs nowhere")
        whole = (known[path], Whole())
        pairs += [] if whole in pairs else [whole]
        found[f"{known[path].name}.{Whole.name}.{leaf}"] = tensor
    return pairs, found


def _prompt(
    tensors: Mapping[str, Tensor],
    method: Method,
    names: Names,
    known: Mapping[str, Site],
    adapter: str,
) -> tuple[Pairs, dict[str, Tensor]]:
    n = method.length  # type: ignore[attr-defined]
    rows = tensors[KEY].shape[0]
    if rows not in (n, 2 * n):
        raise AdapterMismatch(f"adapter {adapter!r}: {KEY!r} has {rows} rows, and must have {n}")
    if rows != n and len(names.tensors) > 1:
        raise InputError(
            f"adapter {adapter!r} has a prompt of the decoder too, which HF PEFT's "
            f"{names.peft_type} uses in a forward pass and leaves out when it generates: train it "
            "there with num_transformer_submodules=1"
        )
    site = next((site for site in known.values() if "input" in site.roles), None)
    if site is None:
        raise AdapterMismatch(f"adapter {adapter!r}: the model takes no token embeddings")
    if missing := sorted(set(names.tensors.values()) - set(tensors)):
        raise AdapterMismatch(f"adapter {adapter!r} misses {missing}")
    held = {**tensors, KEY: tensors[KEY][:n]}
    found = {
        f"{site.name}.{method.name}.{own}": held[theirs].clone()
        for own, theirs in names.tensors.items()
    }
    return [(site, method)], found


def _prefix(
    config: Mapping[str, Any],
    prompts: Tensor,
    method: Method,
    model: nn.Module,
    known: Mapping[str, Site],
    adapter: str,
) -> tuple[Pairs, dict[str, Tensor]]:
    sites = _layers(model, known)
    shapes = {tuple(site.geometry.shape) for site in sites}
    if len(shapes) != 1:
        raise AdapterMismatch(f"adapter {adapter!r}: the model has no attentions of one shape")
    (shape,), n = shapes, method.length  # type: ignore[attr-defined]
    if tuple(prompts.shape) != (n, 2 * len(sites) * shape[0] * shape[1]):
        raise AdapterMismatch(
            f"adapter {adapter!r}: {KEY!r} has shape {tuple(prompts.shape)}, and must have "
            f"{(n, 2 * len(sites) * shape[0] * shape[1])}: {n} positions, {len(sites)} layers of "
            f"{shape[0]} heads of {shape[1]}"
        )
    parts = prompts.view(n, len(sites), 2, *shape).permute(1, 2, 3, 0, 4)
    found = {}
    for i, site in enumerate(sites):
        for name, tensor in zip("KV", parts[_part(model, i, len(sites))], strict=True):
            found[f"{site.name}.{method.name}.{name}"] = tensor.contiguous()
    return [(site, method) for site in sites], found


def _part(model: nn.Module, layer: int, layers: int) -> int:
    return 2 * layer % layers if _is_encoder_decoder(model) else layer


def _layers(model: nn.Module, known: Mapping[str, Site]) -> list[Site]:
    """The self-attentions that HF PEFT extends: of an encoder-decoder the decoder's."""
    own = {site.name: site for site in known.values() if "self-attention" in site.roles}
    if _is_encoder_decoder(model):
        decoder = model.get_decoder()  # type: ignore[operator]
        path = next(name for name, module in model.named_modules() if module is decoder)
        own = {name: site for name, site in own.items() if name.startswith(f"{path}.")}
    return list(own.values())


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _read_by_head(model: nn.Module, task: Any) -> bool:
    causal = any(getattr(module, "is_causal", False) is True for module in model.modules())
    return task in _READ and not causal and not _is_encoder_decoder(model)


def write(
    model: nn.Module, adapter: Adapter, names: Names, task: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and the fields of the configuration that depend on the model."""
    acting = [(site, d) for site, d in adapter.deltas() if d.method.name != Whole.name]
    method = acting[0][1].method
    if task is None:
        raise InputError(
            f"HF PEFT's {names.peft_type} files are for a task, by the kind of the model's head; "
            f"{type(model).__name__} has none: use format='trimtab'"
        )
    if len({delta.method for _, delta in acting}) > 1:
        raise InputError(f"HF PEFT's {names.peft_type} files hold one prompt or prefix only")
    with torch.no_grad():
        if isinstance(method, Prefix):
            tensors, sizes = _written_prefix(model, acting, names)
        else:
            tensors, sizes = _written_prompt(model, acting, names, task)
    tensors |= dict(_heads(model, adapter, task))
    return tensors, {**sizes, "modules_to_save": list(heads({"task_type": task})) or None}


def _written_prompt(
    model: nn.Module, acting: list[tuple[str, Any]], names: Names, task: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    ((_, delta),) = acting
    if "input" not in delta.site.roles:
        raise InputError(f"HF PEFT's {names.peft_type} files hold no prompt of a decoder's input")
    if bool(delta.method.keep) != _read_by_head(model, task):
        raise InputError(
            f"HF PEFT's heads read the prompt where the model is an encoder with a head, and only "
            f"there: {delta.method.name}: keep must be {_read_by_head(model, task)}"
        )
    held = delta.tensors()
    if len(names.tensors) == 1:  # what makes the prompt, such as an encoder, is left out
        tensors = {KEY: delta.method.extend(delta.values(torch.float32), Call()).contiguous()}
    else:
        tensors = {theirs: held[own].detach().clone() for own, theirs in names.tensors.items()}
    heads_, layers = _counts(model)
    width = tensors[KEY].shape[1]
    sizes = {"token_dim": width, "num_attention_heads": heads_, "num_layers": layers}
    return tensors, {**sizes, "num_transformer_submodules": 1}


def _counts(model: nn.Module) -> tuple[int, int]:
    """Heads and layers, which a prompt does not need and HF PEFT asks for."""
    config: Any = getattr(model, "config", None)
    return config.num_attention_heads, config.num_hidden_layers


def _written_prefix(
    model: nn.Module, acting: list[tuple[str, Any]], names: Names
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from trimtab.match import sites

    base: Any = getattr(model, "base_model", model)
    if "past_key_values" not in inspect.signature(base.forward).parameters:
        raise InputError(
            f"HF PEFT puts prefixes into a cache, which {type(model).__name__} has none of; use "
            "format='trimtab'"
        )
    layers = [site.name for site in _layers(model, {one.name: one for one in sites(model)})]
    if [site for site, _ in acting] != layers:
        raise InputError(
            f"HF PEFT's {names.peft_type} files hold a prefix of all self-attentions (of an "
            "encoder-decoder, all of its decoder's), and of nothing else"
        )
    parts: dict[int, Tensor] = {}
    for i, (site, delta) in enumerate(acting):
        both = torch.stack(delta.method.kv(delta.values(torch.float32), Call()))
        part = _part(model, i, len(layers))
        if part in parts and not torch.equal(parts[part], both):
            raise InputError(
                f"HF PEFT's {names.peft_type} files give {site!r} the prefix of another layer of "
                "the decoder, and here they differ"
            )
        parts[part] = both
    shape = acting[0][1].site.geometry.shape
    every = [parts.get(i, torch.zeros_like(both)) for i in range(len(layers))]
    prompts = torch.stack(every).permute(3, 0, 1, 2, 4).flatten(1)
    sizes = {"token_dim": shape[0] * shape[1], "num_attention_heads": shape[0]}
    submodules = 2 if _is_encoder_decoder(model) else 1
    return {KEY: prompts.contiguous()}, {
        **sizes,
        "num_layers": len(layers),
        "num_transformer_submodules": submodules,
    }


def _heads(model: nn.Module, adapter: Adapter, task: str) -> Iterator[tuple[str, Tensor]]:
    """What HF PEFT expects beside a prompt: the heads of its task, trained or not."""
    trained = {site: d for site, d in adapter.deltas() if d.method.name == Whole.name}
    for site in trained:
        if not saved(site, heads({"task_type": task})):
            raise InputError(f"HF PEFT's prompts are saved with the head only; {site!r} is none")
    for path, module in model.named_modules():
        if ".deltas." in f"{path}." or not saved(path, heads({"task_type": task})):
            continue
        own: Any = trained[path].tensors() if path in trained else {}
        if not isinstance(module, Host) and not own:
            own = dict(module.named_parameters(recurse=False))
        for leaf, tensor in own.items():
            yield f"{ROOT}{path}.{leaf}", tensor.detach().clone()
