"""What methods are called in HF PEFT's files, as data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


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
    """The hyper-parameters that may differ by site, by `rank_pattern` and the like."""
    exact_patterns: bool = False
    """Whether those name a module in full as it is, where others are regular expressions alone."""
    spelled: Mapping[str, str] = field(default_factory=dict)
    """Those whose pattern has another name."""
    columns: Collection[str] = ()
    """Vectors here that are (n, 1) there."""
    rows: Collection[str] = ()
    """Vectors here that are (1, n) there at convolutions."""
    channels: Collection[str] = ()
    """Vectors here that are (1, n, 1, …) at convolutions."""
    kernels: Mapping[str, int] = field(default_factory=dict)
    """Tensors that read patches, here (n, m · kernel) and there (n, m, *kernel), and of how many
    dimensions a kernel is at least.
    """
    common: Mapping[str, str] = field(default_factory=dict)
    """Tensors that all sites share."""
    repeated: bool = False
    """Whether these stand at every site, too."""
    drawn: Collection[str] = ()
    """Tensors that a file may leave out, as the field `saved` says: they are drawn as the method
    draws them.
    """
    saved: str | None = None
    left_out: bool = False
    """Whether what is written leaves these out, where they would be drawn again."""
    form: Form | None = None
    """How tensors stand there that have no equal here one by one."""
    differs: Callable[[Any, Any, Any], str | None] = lambda method, geometry, module: None
    """(method, geometry, module) -> why the law there is another one, where it is."""
    state: Collection[str] = ()
    """Tensors that no file holds: they are as at the start."""
    masked: Mapping[str, int] = field(default_factory=dict)
    """The tensors, and along which dimension, that hold only what `mask` leaves; the field
    `rank_pattern` holds the masks.
    """
    tokens: bool = False
    """Whether it may name tokens of the embedding that train beside it."""
    parameters: bool = False
    """Whether it adapts tensors by their name, such as experts held in one."""
    starts: Collection[str] = ()
    """Starts from the base's weights alone, by which `anchored` factors of a file are found."""
    more: Fields | None = None
    """Fields that are no hyper-parameters one by one."""

    def tensors_at(self, kind: str) -> Mapping[str, str]:
        return self.at.get(kind, {}) if kind in {"embedding", "conv"} else self.tensors

    def pattern(self, own: str) -> str:
        """The field that holds this hyper-parameter by site."""
        return f"{self.spelled.get(own, own)}_pattern"


@dataclass(frozen=True)
class Fields:
    """Several fields of HF PEFT's that are several hyper-parameters here: `read` takes those of a
    configuration to hyper-parameters, `write` the method to all of them.
    """

    names: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Form:
    """All tensors of a file, by key, and its configuration: `read` brings them into a form that
    `Names` can tell, `write` back.
    """

    read: Callable[[Mapping[str, Any], Mapping[str, Tensor]], dict[str, Tensor]]
    write: Callable[[Mapping[str, Any], Mapping[str, Tensor]], dict[str, Tensor]]


def padded_otherwise(method: Any, geometry: Any, module: Any) -> str | None:
    """A convolution that pads by other numbers than zeros, where there it is zeros."""
    mode = getattr(module, "padding_mode", "zeros")
    return None if mode == "zeros" else f"it pads by zeros, and this convolution by {mode!r}"
