"""What methods are called in HF PEFT's files, as data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Names:
    """How a method appears in HF PEFT's files, as data: type, tensors, and fields of its
    configuration.
    """

    peft_type: str
    tensors: Mapping[str, str]
    fields: Mapping[str, str]
    oriented: str | None = None
    """The tensor that is (1, in) at sites listed as `feedforward_modules` and (out, 1) elsewhere;
    the method tells them apart by its hyper-parameter `scales`.
    """
    transposed: bool = False
    """Whether its configuration has `fan_in_fan_out`."""
    shift: str | None = None
    """A bias of the update itself: it shifts the output by this tensor times the method's `scale`.
    """
    biases: str | None = None
    """What its field `bias` says where the biases of the targets train."""
    at: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The tensors at other kinds of geometry than linear maps."""
    patches: str | None = None
    """The tensor that reads a convolution's patches: there it has the shape of a convolution, and
    the other ones that of a convolution of kernel 1.
    """
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Fields and their values that tell it from other methods of the type."""
    patterns: Collection[str] = ("rank", "alpha")
    """The hyper-parameters that may differ by site, by `rank_pattern` and `alpha_pattern`."""
    columns: Collection[str] = ()
    """Vectors here that are (n, 1) there."""
    channels: Collection[str] = ()
    """Vectors here that are (1, n, 1, …) at convolutions."""
    common: Mapping[str, str] = field(default_factory=dict)
    """Tensors that all sites share. The field `save_projection` says whether a file holds them;
    otherwise they are drawn as the method draws them.
    """
    state: Collection[str] = ()
    """Tensors that no file holds: they are as at the start."""
    masked: Mapping[str, int] = field(default_factory=dict)
    """The tensors, and along which dimension, that hold only what `mask` leaves; the field
    `rank_pattern` holds the masks.
    """
    tokens: bool = False
    """Whether it may name tokens of the embedding that train beside it."""
    starts: Collection[str] = ()
    """Starts from the base's weights alone, by which `anchored` factors of a file are found."""
    more: Fields | None = None
    """Fields that are no hyper-parameters one by one."""

    def tensors_at(self, kind: str) -> Mapping[str, str]:
        return self.at.get(kind, {}) if kind in {"embedding", "conv"} else self.tensors


@dataclass(frozen=True)
class Fields:
    """Several fields of HF PEFT's that are several hyper-parameters here: `read` takes those of a
    configuration to hyper-parameters, `write` the method to all of them.
    """

    names: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[Any], dict[str, Any]]
