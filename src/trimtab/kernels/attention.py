"""Attention by blocks of queries, each as plain matrix products.

    y = softmax(s q kᵀ + m) v

The backward pass makes the weights of a block again, so that no matrix of all queries by all keys
is kept, but that of a short text; keys that no query of a block sees are left out: half of them
under a causal mask, nearly all where many short texts are packed into one row. Queries that share
keys stand side by side, and keys are not repeated.

torch's fused attention takes two to three times as long on a CPU (bf16, 256 or 512 tokens, heads of
64, forward and backward). `blockwise(model)` puts this in its place for a model of transformers;
what it does not state (dropout, biases of positions, other devices) goes on to that one.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trimtab import attention as prefixes
from trimtab.core import kernel
from trimtab.core.errors import InputError
from trimtab.kernels import cpu

NAME = "blockwise"
_BLOCK = 128  # queries
_SHORT = 64  # queries and keys: below, what is kept is no more than other layers keep
_FEW = 8  # queries: below, plain products are faster than the compiled kernel
_NARROW = 32  # keys: below, torch's softmax and its backward are six times as fast in fp32

Mask = Tensor | None


class Blockwise(torch.autograd.Function):
    """q (b, h, t, d), k and v (b, g, s, d) where h/g queries share keys, mask (b or 1, h or 1, t,
    s) True where one may look, or None: all may, or up to their own place -> y (b, h, t, d)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Mask, causal: bool, scale: float
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.facts = causal, scale
        return _all(q, k, v, mask, causal, scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        causal, scale = ctx.facts
        if torch.is_grad_enabled():  # a second derivative is asked for
            return _again(q, k, v, mask, causal, scale, dy)
        dq, dk, dv = torch.empty_like(q), _sums(k), _sums(v)
        for rows, keys, seen in _blocks(q, k, mask, causal):
            near = (q[:, :, rows], k[:, :, keys], v[:, :, keys])
            own = [one.detach().requires_grad_() for one in near]
            with torch.enable_grad():
                y = _block(*own, seen, scale)
            dq[:, :, rows], *more = torch.autograd.grad(y, own, dy[:, :, rows])
            for total, one in zip((dk, dv), more, strict=True):
                total[:, :, keys] += one
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None


class Compiled(torch.autograd.Function):
    """The same in one pass of C++ for bf16: q, k, v and mask as above, y (b, t, h, d)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Mask, causal: bool, scale: float
    ) -> Tensor:
        b, h, t, d = q.shape
        y, lse = q.new_empty(b, t, h, d), None
        if any(ctx.needs_input_grad[:3]):
            lse = cpu.floats(b, h, t)
        seen = None if mask is None else mask.expand(b, h, t, k.shape[2])
        _call("", (q, k, v, seen), causal, scale, (y.transpose(1, 2),), (y, lse))
        ctx.save_for_backward(q, k, v, mask, lse)
        ctx.facts = causal, scale
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, lse = ctx.saved_tensors
        causal, scale = ctx.facts
        if torch.is_grad_enabled():  # a second derivative is asked for
            return _again(q, k, v, mask, causal, scale, dy.transpose(1, 2))
        b, h, t, d = q.shape
        g, s = k.shape[1:3]
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        dq = q.new_empty(b, t, h, d).transpose(1, 2)
        dk, dv = (q.new_empty(b, s, g, d).transpose(1, 2) for _ in range(2))
        seen = None if mask is None else mask.expand(b, h, t, s)
        at = (dy.transpose(1, 2), dq, dk, dv)
        _call("_backward", (q, k, v, seen), causal, scale, at, (lse, dy, dq, dk, dv))
        return dq, dk, dv, None, None, None


def _call(
    which: str,
    given: tuple[Tensor, Tensor, Tensor, Mask],
    causal: bool,
    scale: float,
    placed: tuple[Tensor, ...],
    last: tuple[Tensor | None, ...],
) -> None:
    """`placed`: (b, h, t, d) whose strides are told beside those of what is given; `last`: what is
    handed over after the scale."""
    q, k, v, mask = given
    b, h, t, d = q.shape
    sizes = (ctypes.c_int * 6)(b, h, k.shape[1], t, k.shape[2], d)
    of = (0, 0, 0) if mask is None else mask.stride()[:3]
    own = [step for tensor in (q, k, v, *placed) for step in tensor.stride()[:3]]
    strides = (ctypes.c_int64 * (3 + len(own)))(*of, *own)
    getattr(cpu.loaded(), f"trimtab_attention{which}")(
        *(*cpu.addresses(*given), ctypes.addressof(sizes), ctypes.addressof(strides)),
        *(scale, int(causal), *cpu.addresses(*last)),
    )


def _compiled(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> bool:
    """Whether the compiled kernel takes these. For few queries what it packs is not worth while."""
    return (
        q.shape[2] >= _FEW
        and q.dtype == k.dtype == v.dtype == torch.bfloat16
        and q.shape[-1] == k.shape[-1] == v.shape[-1]
        and q.shape[-1] % 2 == 0
        and all(one.stride(-1) == 1 for one in (q, k, v))
        and (mask is None or (mask.stride(-1) == 1 and mask.shape[-1] == k.shape[2]))
        and cpu.real(q, k, v, mask)
        and cpu.has("attention")
    )


def _again(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, causal: bool, scale: float, dy: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients once more, so that they can be differentiated."""
    own = [one.view_as(one) for one in (q, k, v)]  # which do not depend on one another
    asked = [one for one in own if one.requires_grad]
    y = _all(*own, mask, causal, scale)
    found = iter(torch.autograd.grad(y, asked, dy, create_graph=True))
    each = (next(found) if one.requires_grad else None for one in own)
    return (*each, None, None, None)


def _sums(x: Tensor) -> Tensor:
    """Where gradients of all blocks are added up."""
    return torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def _all(q: Tensor, k: Tensor, v: Tensor, mask: Mask, causal: bool, scale: float) -> Tensor:
    parts = [
        _block(q[:, :, rows], k[:, :, keys], v[:, :, keys], seen, scale)
        for rows, keys, seen in _blocks(q, k, mask, causal)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _blocks(q: Tensor, k: Tensor, mask: Mask, causal: bool) -> Iterator[tuple[slice, slice, Mask]]:
    """(its queries, the keys from the first to the last that one of these sees, what is added to
    their scores)."""
    t, s = q.shape[2], k.shape[2]
    for first in range(0, t, _BLOCK):
        rows = slice(first, min(t, first + _BLOCK))
        seen = None if mask is None else mask[:, :, rows]
        if causal:
            every = torch.ones(rows.stop - first, s, dtype=torch.bool, device=q.device)
            seen = every.tril(first)[None, None]
        if seen is None:
            yield rows, slice(0, s), None
            continue
        places = seen.any(0).any(0).any(0).nonzero()
        keys = slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, s)
        zero, low = q.new_zeros(()), torch.finfo(q.dtype).min  # not -∞: who may not look is no nan
        yield rows, keys, zero.masked_fill(~seen[..., keys], low)


def _block(q: Tensor, k: Tensor, v: Tensor, hidden: Mask, scale: float) -> Tensor:
    b, h, t, d = q.shape
    g, s = k.shape[1:3]
    x = (q * scale).reshape(b * g, h // g * t, d)
    scores = (x @ k.reshape(b * g, s, d).mT).view(b, h, t, s)
    wide = torch.promote_types(q.dtype, torch.float32) if s < _NARROW else q.dtype
    p = (scores if hidden is None else scores + hidden).softmax(-1, wide).to(q.dtype)
    y = p.view(b * g, h // g * t, s) @ v.reshape(b * g, s, v.shape[-1])
    return y.view(b, h, t, v.shape[-1])


_STATED_ELSEWHERE = ("position_bias", "softcap", "cache")  # by torch's fused attention
_KNOWN = {
    *_STATED_ELSEWHERE,
    *("position_ids", "cache_position", "use_cache", "past_key_values", "logits_to_keep"),
    *("output_attentions", "output_hidden_states", "return_dict", "num_items_in_batch"),
    *("sliding_window", "layer_idx"),  # a window is in the mask
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),  # so is what is packed
}


def _whole(mask: Tensor, query: Tensor) -> bool:
    return mask.dtype == torch.bool and mask.ndim == 4 and mask.shape[2] == query.shape[2]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls an attention function: y as (b, t, h, d).

    Raises:
        InputError: the model hands its attention something that no general one heeds.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    given = {name for name, value in options.items() if value is not None}
    if odd := sorted(given - _KNOWN):
        raise InputError(
            f"{type(module).__name__} hands its attention {odd[0]!r}, which {NAME!r} does not "
            "know: take another by set_attn_implementation"
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = attention_mask is None and causal and query.shape[2] > 1
    ours = (
        kernel.enabled()
        and query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and kernel.unmodified(query)
        and not dropout
        and all(options.get(name) is None for name in _STATED_ELSEWHERE)
        and (attention_mask is None or _whole(attention_mask, query))
        and query.shape[0] == key.shape[0]
        and not (causal and query.shape[2] != key.shape[2])
    )
    if not ours:
        facts = {"scaling": scaling, "dropout": dropout, "is_causal": is_causal, **options}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **facts)
    mask = None if attention_mask is None else attention_mask[..., : key.shape[2]]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if _compiled(query, key, value, mask):
        return Compiled.apply(query, key, value, mask, causal, scale), None
    given = (query, key.contiguous(), value.contiguous(), mask, causal, scale)
    y = _all(*given) if max(query.shape[2], key.shape[2]) <= _SHORT else Blockwise.apply(*given)
    return y.transpose(1, 2).contiguous(), None


@functools.cache
def offer() -> str:
    """Make it known to transformers; the name under which it is."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    prefixes.offer(NAME)  # the same, with prefixes
    return NAME


def blockwise(model: nn.Module) -> None:
    """Let a model of transformers take this attention from now on; `set_attn_implementation`
    takes it back.

    Raises:
        InputError: the model has no attention that could be exchanged.
    """
    if not getattr(model, "_supports_sdpa", False):
        raise InputError(
            f"the attention of {type(model).__name__} cannot be exchanged: it takes a model of "
            "transformers that supports sdpa"
        )
    model.set_attn_implementation(offer())  # type: ignore[operator]
    if model.config._attn_implementation != NAME:  # type: ignore[union-attr]
        raise InputError(f"the attention of {type(model).__name__} cannot be exchanged")
    if not any(isinstance(hook, _Offered) for hook in model._forward_pre_hooks.values()):
        model.register_forward_pre_hook(_Offered())


class _Offered:
    """At the root: where the model is unpickled, its attention becomes known again."""

    def __call__(self, module: nn.Module, args: Any) -> None:
        pass

    def __reduce__(self) -> Any:
        return _offered, ()


def _offered() -> _Offered:
    offer()
    return _Offered()
