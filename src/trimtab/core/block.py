"""A whole block as what lies beneath a law: hidden states in, hidden states out, and beside them
whatever else it is given and gives.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.core.operator import Operator
from trimtab.core.site import Geometry

_PAIRS = {"attention_mask", "position_bias", "src_mask", "mask", "attn_mask"}
"""Of (…, positions, positions), or (batch, positions)."""
_SECOND = {"position_ids", "position_embeddings", "src_key_padding_mask"}
"""Of (batch, positions, …), or several such."""
_QUERIES = {"encoder_decoder_position_bias", "encoder_attention_mask"}
"""Of (…, positions, what is attended to); of fewer than four dimensions, of another stack's."""
_OTHERS = {"encoder_hidden_states"}
"""Of another stack's positions."""


class Block(Operator):
    """The frozen block with the arguments that it got beside its hidden states. What it gives
    beside them is kept for the host to give on."""

    def __init__(
        self,
        module: nn.Module,
        geometry: Geometry,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.module, self.geometry = module, geometry
        self.args, self.kwargs = args, dict(kwargs)
        self.rest: tuple[Any, ...] | None = None
        self.source: Block = self
        self.replaced: list[tuple[Any, Any]] = []  # (what a narrowed block is given, the whole)

    def __call__(self, x: Tensor) -> Tensor:
        given = self.module(x, *self.args, **self.kwargs)
        y, *rest = given if isinstance(given, tuple | list) else (given,)
        if not isinstance(y, Tensor):
            raise InputError(
                f"{type(self.module).__name__} gives {type(y).__name__}, not hidden states, or a "
                "tuple that begins with them: no adapter can act at it"
            )
        if isinstance(given, tuple | list):
            self.source.rest = tuple(self._whole(one) for one in rest)
        return y

    def _whole(self, given: Any) -> Any:
        """What the block handed on of its own arguments is handed on as the caller gave it."""
        for narrow, whole in self.replaced:
            if given is narrow or _same(given, narrow):
                return whole
        if self.source is not self and isinstance(given, Tensor):
            raise InputError(
                f"{type(self.module).__name__} gives more than hidden states, which cannot be made "
                "of some of its positions alone: choose a target that leaves it out"
            )
        return given

    def output(self, y: Tensor) -> Any:
        """The block's output with y for its hidden states."""
        return y if self.rest is None else (y, *self.rest)

    def tensors(self) -> dict[str, Tensor]:
        raise InputError("a block has no one weight")

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return next(self.module.parameters()).dtype

    def narrowed(self, rows: Tensor | None, positions: Tensor | None) -> Operator:
        names = list(inspect.signature(inspect.unwrap(type(self.module).forward)).parameters)[2:]
        cut: dict[str, Any] = {}
        replaced: list[tuple[Any, Any]] = []
        for name, value in [*zip(names, self.args, strict=False), *self.kwargs.items()]:
            new = self._of_rows(value, rows)
            cut[name] = new if positions is None else self._of_positions(name, new, positions)
            if new is not None:
                replaced.append((cut[name], value))
        # By position what came by position: checkpointing that re-enters detaches those alone.
        args = tuple(cut.pop(name) for name in names[: len(self.args)])
        block = Block(self.module, self.geometry, args, cut)
        block.source, block.replaced = self.source, replaced
        return block

    def _of_rows(self, value: Any, rows: Tensor | None) -> Any:
        if rows is None:
            return value
        return _each(value, lambda t: t if t.shape[0] == 1 or t.ndim < 2 else t[rows])

    def _of_positions(self, name: str, value: Any, positions: Tensor) -> Any:
        if value is None or isinstance(value, bool | str) or name in _OTHERS:
            return value
        if name == "past_key_values":
            return None  # only an empty one of the model's own comes here
        fits = isinstance(value, Tensor | tuple | list)
        if fits and name in _PAIRS:
            return _each(value, lambda t: _pairs(t, positions))
        if fits and name in _SECOND:
            return _each(value, lambda t: _along(t, 1, positions))
        if fits and name in _QUERIES:
            return _each(value, lambda t: t if t.ndim < 4 else _along(t, -2, positions))
        raise InputError(
            f"{type(self.module).__name__} takes {name!r}, of which it is not known what belongs "
            "to which position: it cannot compute some positions only"
        )


def _same(one: Any, other: Any) -> bool:
    """Whether these are one tensor; checkpointing that re-enters hands on an alias."""
    both = isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape
    return both and one.data_ptr() == other.data_ptr()


def _each(value: Any, cut: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return cut(value)
    return type(value)(cut(one) for one in value) if isinstance(value, tuple | list) else value


def _pairs(mask: Tensor, positions: Tensor) -> Tensor:
    if mask.ndim == 2 and mask.shape[0] == mask.shape[1] != positions.shape[0]:
        raise InputError("a mask (positions, positions) without a batch cannot be cut by example")
    if mask.ndim == 2:
        return _along(mask, 1, positions)
    return _along(_along(mask, -2, positions), -1, positions)


def _along(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """The chosen positions (batch, k) of a dimension; one that is 1 stands for all."""
    dim %= tensor.ndim
    if tensor.shape[dim] == 1:
        return tensor
    batch, k = positions.shape
    tensor = tensor.expand(batch, *tensor.shape[1:])
    index = positions.reshape(batch, *[1] * (dim - 1), k, *[1] * (tensor.ndim - dim - 1))
    shape = list(tensor.shape)
    shape[dim] = k
    return tensor.gather(dim, index.expand(shape))
