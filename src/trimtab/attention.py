"""Trained keys and values before an attention's own, through transformers' registry of attention
functions.

An attention with prefixes has its configuration's function wrapped: `sdpa` becomes `trimtab_sdpa`,
which puts k and v before the layer's and lengthens the mask. Prefixes never enter a cache, so that
they work with all kinds of caches, with beams and under checkpointing.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.call import Call, repeated
from trimtab.core.errors import InputError, StateError
from trimtab.core.extends import EXTENDED, OURS
from trimtab.core.front import gathered
from trimtab.core.host import Companion
from trimtab.core.layout import runs
from trimtab.core.method import Prefix
from trimtab.core.walk import plain, walk


def connect(model: nn.Module) -> None:
    """Wrap the attention function where prefixes are, and unwrap it where there are none."""
    wanted: dict[int, tuple[Any, list[Companion]]] = {}
    for _, module in walk(model):
        config = getattr(plain(module), "config", None)
        if hasattr(config, "_attn_implementation"):
            companion = module._modules.get("deltas")
            here = wanted.setdefault(id(config), (config, []))[1]
            if isinstance(companion, Companion) and companion.site.geometry.kind == "attention":
                here.append(companion)
    for config, here in wanted.values():
        _wrap(config, bool(here))
    wrapped = [(config, here) for config, here in wanted.values() if here]
    for name in {"", *(run.name for run in runs(model))} if wrapped else ():
        model.get_submodule(name).register_forward_pre_hook(Wrap(wrapped))


class Wrap:
    """Before a model and its stacks: a configuration may be another model's too, which unwraps it,
    and `set_attn_implementation` forgets what was wrapped."""

    def __init__(self, configs: list[tuple[Any, list[Companion]]]) -> None:
        self.configs = configs

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Where the model is unpickled, transformers may not know the function yet."""
        self.__dict__.update(state)
        for bare in {_bare(config) for config, _ in self.configs} & {"eager", "sdpa"}:
            offer(bare)

    def __call__(self, module: nn.Module, args: Any) -> None:
        for config, companions in self.configs:
            if _bare(config) in EXTENDED:
                _wrap(config, True)
            elif any(companion.acts() for companion in companions):
                raise StateError(
                    f"a prefix is active, which extends attention by {' or '.join(EXTENDED)}, and "
                    f"the model uses {_bare(config)!r} now: choose one of them by "
                    "set_attn_implementation, or deactivate the prefix"
                )


def _bare(config: Any) -> str:
    return str(config._attn_implementation or "eager").removeprefix(OURS)


def _wrap(config: Any, here: bool) -> None:
    if here != str(config._attn_implementation).startswith(OURS):
        bare = _bare(config)
        offer(bare)
        config._attn_implementation = OURS + bare if here else bare


@functools.cache
def offer(bare: str) -> None:
    """Make the wrapped function and its masks known to transformers."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    masks = ALL_MASK_ATTENTION_FUNCTIONS[bare]
    ALL_MASK_ATTENTION_FUNCTIONS.register(OURS + bare, functools.partial(_written_out, masks))
    own = None if bare == "eager" else ALL_ATTENTION_FUNCTIONS[bare]
    ALL_ATTENTION_FUNCTIONS.register(OURS + bare, functools.partial(_attend, own))


def _written_out(masks: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A mask that is left out because it is causal would not fit longer keys."""
    kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return masks(*args, **kwargs)


def _attend(
    own: Callable[..., Any] | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> Any:
    """query (batch, heads, q, width), key and value (batch, key heads, k, width)."""
    if own is None:
        own = sys.modules[type(module).__module__].eager_attention_forward
    companion = module._modules.get("deltas")
    batch = key.shape[0]
    found = prefix(companion, batch) if isinstance(companion, Companion) else None
    if found is None:
        return own(module, query, key, value, attention_mask, **options)
    k, v = found.unbind(-4)  # (batch or none, heads, n, width) each
    k, v = (_expanded(one.to(key), batch) for one in (k, v))
    _check(companion, k, key)
    n = k.shape[2]
    if attention_mask is not None:
        attention_mask = _lengthened(attention_mask, n, key.shape[2])
    if options.get("position_bias") is not None:
        bias = options["position_bias"]
        options["position_bias"] = torch.cat([_bias(companion, bias, n), bias], dim=-1)
    keys, values = torch.cat([k, key], dim=2), torch.cat([v, value], dim=2)
    return own(module, query, keys, values, attention_mask, **options)


def prefix(companion: Companion, batch: int) -> Tensor | None:
    """(2, heads, n, width), or (batch, 2, heads, n, width) where every example has its own."""

    def of(name: str, call: Call) -> list[Tensor]:
        return [
            torch.stack(delta.method.kv(delta.values(torch.float32), call), dim=-4)
            for delta in companion.of(name).values()
            if isinstance(delta.method, Prefix)
        ]

    found = gathered(companion, of, 4, batch) if companion.acts() else None
    companion.switch.call.taps.pop(companion.site.name, None)
    return found


def _bias(companion: Any, bias: Tensor, n: int) -> Tensor:
    """What relative positions add to the scores of a prefix, the n positions before the first."""
    source = companion.__dict__.get("bias")
    if source is None:
        return bias.new_zeros(*bias.shape[:-1], n)
    past = companion.switch.call.past.get(companion.site.stack, 0)
    front = source.compute_bias(bias.shape[-2], n, device=bias.device, past_seen_tokens=past + n)
    return front.to(bias).expand(*bias.shape[:-1], n)


def connect_biases(stack: nn.Module) -> None:
    """The self-attentions with a prefix learn who computes their relative biases: they themselves,
    or the first of their stack."""
    sources = [plain(module) for _, module in walk(stack) if _biased(plain(module))]
    for _, module in walk(stack):
        companion = module._modules.get("deltas")
        if isinstance(companion, Companion) and "self-attention" in companion.site.roles:
            own = [plain(module)] if plain(module) in sources else sources
            companion.__dict__["bias"] = own[0] if own else None  # no child: it hangs elsewhere


def _biased(module: nn.Module) -> bool:
    """Whether it computes the biases of relative positions, for its stack or for itself."""
    law = getattr(type(module), "compute_bias", None)
    told = law is not None and "past_seen_tokens" in inspect.signature(law).parameters
    return told and getattr(module, "has_relative_attention_bias", False)


def _expanded(one: Tensor, batch: int) -> Tensor:
    if one.ndim == 3:
        return one.expand(batch, -1, -1, -1)
    return repeated(one, batch, "the route")


def _check(companion: Any, k: Tensor, key: Tensor) -> None:
    if k.shape[1] != key.shape[1] or k.shape[3] != key.shape[3]:
        raise InputError(
            f"the prefix at {companion.site.name!r} has keys of {k.shape[1]} heads x {k.shape[3]}, "
            f"and the attention there {key.shape[1]} x {key.shape[3]}"
        )


def _lengthened(mask: Tensor, n: int, keys: int) -> Tensor:
    """Every position may look at the prefix. A mask (…, k) is True or 0 where one may look."""
    mask = mask[..., :keys]
    front = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros
    return torch.cat([front(*mask.shape[:-1], n), mask], dim=-1)
