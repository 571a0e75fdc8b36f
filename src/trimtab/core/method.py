"""A method states its law once; forward, merge, save and count are derived from it here."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.core.operator import Operator, linear
from trimtab.core.registry import register
from trimtab.core.site import Geometry, Site


class Values:
    """The parameters of one delta as attributes, ready for use: cast to the dtype of the
    computation.
    """

    def __init__(self, tensors: Mapping[str, Tensor], training: bool) -> None:
        self.training = training
        for name, tensor in tensors.items():
            setattr(self, name, tensor)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Param:
    """A named tensor of a delta. `trained` receives gradients; otherwise it is kept fixed.

    `exact` keeps it in its own precision at use: for factors near one, which bf16 would round away.
    """

    value: Tensor
    trained: bool = True
    exact: bool = False


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


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Frozen hyper-parameters plus pure laws over parameters `p`. Concrete classes set `name`."""

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    targets: ClassVar[tuple[str, ...]] = ("all-linear",)
    learning_rate: ClassVar[float] = 1e-3
    base_dropout: ClassVar[bool] = False
    hf: ClassVar[Names | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in cls.__dict__:
            register(cls)

    def accepts(self, site: Site) -> str | None:
        """None where the law can act; otherwise the reason why it cannot."""
        return None if site.geometry.kind == "linear" else "it is no linear map"

    @abstractmethod
    def init(self, site: Site) -> dict[str, Param]:
        """The parameters at one site, as the paper initialises them."""

    @abstractmethod
    def forward(self, p: Values, x: Tensor, inner: Operator) -> Tensor:
        """The site's output for input x (…, in), over what lies beneath."""

    @abstractmethod
    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(W, b) -> (W', b'), W being (out, in): the law as a change of the map."""

    def rewrite(self, p: Values, own: dict[str, Tensor], geometry: Geometry) -> dict[str, Tensor]:
        """The site's own tensors, by name and in the module's layout, under this law: for
        merging.
        """
        weight, bias = self.affine(p, geometry.read(own["weight"]), own.get("bias"))
        changed = {"weight": geometry.store(weight)}
        return {**own, **changed, **({} if bias is None else {"bias": bias})}

    def arguments(self) -> dict[str, Any]:
        """The hyper-parameters as plain data, for files."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Additive(Method):
    """W' = W + delta(p). `dropout` acts on the input of the added part, while training."""

    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise InputError(f"{self.name}: dropout must lie in [0, 1), not {self.dropout}")

    @abstractmethod
    def delta(self, p: Values) -> Tensor:
        """The change of the matrix, (out, in)."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        """x delta(p)ᵀ; a method may state it without forming the matrix."""
        return linear(x, self.delta(p).to(x.dtype))

    def forward(self, p: Values, x: Tensor, inner: Operator) -> Tensor:
        y = inner(x)
        side = F.dropout(x, self.dropout, p.training) if self.dropout else x
        return y + self.matvec(p, side).to(y.dtype)

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return W + self.delta(p).to(W.dtype), b


@dataclass(frozen=True, kw_only=True)
class Transform(Method):
    """(W', b') = affine(p, W, b); a method may state `forward` without forming W'."""

    def forward(self, p: Values, x: Tensor, inner: Operator) -> Tensor:
        W, b = self.affine(p, inner.weight, inner.bias)
        return linear(x, W.to(x.dtype), None if b is None else b.to(x.dtype))


@dataclass(frozen=True, kw_only=True)
class Selection(Method):
    """Trains the base's own parameters, in place: no site, no law beyond "these are trained"."""

    @abstractmethod
    def chosen(self, model: nn.Module) -> Sequence[str]:
        """The names of the parameters to train."""

    def init(self, site: Site) -> dict[str, Param]:
        raise InputError(f"{self.name} trains parameters of the base and acts at no site")

    def forward(self, p: Values, x: Tensor, inner: Operator) -> Tensor:
        return inner(x)

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return W, b
