"""A method states its law once; forward, merge, save and count are derived from it here."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.extends import unextended
from trimtab.core.names import Fields as Fields
from trimtab.core.names import Form as Form
from trimtab.core.names import Names as Names
from trimtab.core.operator import Operator, Patches, dropout, linear, multiplied
from trimtab.core.options import option as option
from trimtab.core.registry import check, frozen, refuse, register
from trimtab.core.site import Geometry, Site, peculiar
from trimtab.core.values import Param as Param
from trimtab.core.values import Values as Values


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Frozen hyper-parameters plus pure laws over parameters `p`. Concrete classes set `name`.

    Facts of a class: `kinds` of geometry that its law acts on; `starts_at_base`, None or the reason
    why the adapted model does not start at the base; `needs`, the facts of a call that it cannot do
    without; `by_example`, whether its law tells examples from positions; `dense`, whether it forms
    the whole matrix, so that its forward is the product with what `affine` gives; `base_dropout`,
    whether the base keeps its dropout; `replaces`, the base's tensors in whose place its own stand,
    so that the base may hold other values there; `base`, the format that the base's maps must have.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    targets: ClassVar[tuple[str, ...]] = ("all-linear",)
    kinds: ClassVar[frozenset[str]] = frozenset({"linear"})
    learning_rate: ClassVar[float] = 1e-3
    base_dropout: ClassVar[bool] = False
    starts_at_base: ClassVar[str | None] = None
    needs: ClassVar[frozenset[str]] = frozenset()
    by_example: ClassVar[bool] = False
    replaces: ClassVar[frozenset[str]] = frozenset()
    dense: ClassVar[bool] = False
    base: ClassVar[str | None] = None
    hf: ClassVar[Names | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in cls.__dict__ and "dense" not in cls.__dict__:
            cls.dense = False  # it may state another law than what it is derived from
        if "name" in cls.__dict__:
            register(cls)

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """Arguments that are unknown, or have no name, are refused in words that help."""
        if given or not named.keys() <= cls.__dataclass_fields__.keys():
            refuse(cls, given, named)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            object.__setattr__(self, one.name, frozen(getattr(self, one.name)))
            check(self.name, one, getattr(self, one.name))

    def require(self, field: str, holds: bool, what: str) -> None:
        """A bound of a hyper-parameter: `what` says what it must do."""
        if not holds:
            raise InputError(f"{self.name}: {field} must {what}, not {getattr(self, field)!r}")

    def require_use(self, field: str, used: bool, where: str) -> None:
        """Refuse a hyper-parameter without effect beside the others; its default asks for none."""
        (default,) = (one.default for one in dataclasses.fields(self) if one.name == field)
        if not used and (value := getattr(self, field)) != default:
            raise InputError(f"{self.name}: {field}={value!r} has an effect only {where}")

    def accepts(self, site: Site) -> str | None:
        """None where the law can act; otherwise the reason why it cannot."""
        if site.geometry.kind in self.kinds:
            return self._unreachable(site)
        if (reason := peculiar(site.module)) is not None:
            return reason
        what = type(site.module).__name__ if site.geometry.kind == "other" else site.geometry.kind
        return f"it acts on {' or '.join(sorted(self.kinds))}, and this is {what}"

    def _unreachable(self, site: Site) -> str | None:
        """Where a module reads its weight itself, only a change of the weight can act; where
        positions come before examples, only what does not tell them apart."""
        own = type(self)
        if self.by_example and not site.batch_first:
            return "its layers keep positions before examples, which this law tells apart"
        if site.parameter is None or own.affine is not Method.affine:
            return None
        return f"{type(site.module).__name__} reads this weight itself, and gives no output of it"

    def ignored(self, site: Site) -> str | None:
        """The hyper-parameter that would have no effect at a site where the law can act."""
        return None

    def unused(self, sites: Sequence[Site]) -> str | None:
        """Why a hyper-parameter would have no effect at any of the sites of a new adapter."""
        return None

    def settled(self, site: Site) -> Method:
        """The method with those hyper-parameters filled in that it takes from the site."""
        return self

    def unready(self) -> str | None:
        """None where it can be trained; otherwise what must be done first, and why."""
        return None

    def readied(self) -> Method:
        """As its laws are tried: without data, and on maps of a few features."""
        return self

    def misfit(self, p: Values) -> str | None:
        """None where a file's tensors of the right shapes can be used; otherwise what is wrong."""
        return None

    def shared(self, sites: Sequence[Site]) -> dict[str, Param]:
        """The tensors that all sites of an adapter hold in common."""
        return {}

    def allot(self, sites: Sequence[Site]) -> Sequence[dict[str, Param]]:
        """What each of an adapter's sites holds that depends on all of them."""
        return [{} for _ in sites]

    @abstractmethod
    def init(self, site: Site) -> dict[str, Param]:
        """The parameters at one site, as the paper initialises them."""

    @abstractmethod
    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        """The site's output for input x (…, in), over what lies beneath."""

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(W, b) -> (W', b'), W being (out, in): the law as a change of the map."""
        raise InputError(f"{self.name} changes no weights: it cannot be merged into them")

    def rewrite(self, p: Values, own: dict[str, Tensor], geometry: Geometry) -> dict[str, Tensor]:
        """The site's own tensors, by name and in the module's layout, under this law: for
        merging, and where the module reads its weight itself.
        """
        W, b = geometry.read(own["weight"]), own.get("bias")
        if geometry.count:  # one law a matrix, all at once
            each = {name: None if name in p.shared else 0 for name in p.tensors}
            facts = (p.training, p.site, p.index, p.total, p.shared)
            law = torch.vmap(lambda t, Wi: self.affine(Values(t, *facts), Wi, None)[0], (each, 0))
            W = law(p.tensors, W)
        else:
            W, b = self.affine(p, W, b)
        return {**own, "weight": geometry.store(W), **({} if b is None else {"bias": b})}

    def penalty(self, p: Values) -> Tensor | None:
        """What joins the loss at one site: a scalar, such as an expected L0 norm."""
        return None

    def after_backward(  # noqa: B027  most methods have no schedule
        self, sites: Mapping[str, Values], step: int, total: int
    ) -> None:
        """Schedules and pruning. `sites` holds the live tensors, with gradients, of every site."""

    def parts(self) -> tuple[Method, ...]:
        """The methods that act where this one is attached: it alone, or those it stands for."""
        return (self,)

    def alike(self, p: Values) -> tuple[Method, dict[str, Tensor]] | None:
        """The same change of the map as another method makes with these tensors: for files that
        know the other one alone."""
        return None

    def elsewhere(self) -> Method | None:
        """Where it insists on a format of the base: the method that is the same law on any."""
        return None

    def arguments(self) -> dict[str, Any]:
        """The hyper-parameters as plain data, for files."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Dropout(Method):
    """What leaves out a share `dropout` of something, while training."""

    dropout: float = option(0.0, "share that is left out in training, in [0, 1)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("dropout", 0 <= self.dropout < 1, "lie in [0, 1)")

    def ignored(self, site: Site) -> str | None:
        return "dropout" if self.dropout and site.parameter is not None else None


@dataclass(frozen=True, kw_only=True)
class InputDropout(Dropout):
    """What leaves out a share of the input of the change, while training."""

    dropout: float = option(0.0, "share of the change's input left out in training, in [0, 1)")

    def unused(self, sites: Sequence[Site]) -> str | None:
        idle = self.dropout and all(site.geometry.kind == "embedding" for site in sites)
        return "dropout has no effect at embeddings, which read whole numbers" if idle else None


@dataclass(frozen=True, kw_only=True)
class Additive(InputDropout):
    """W' = W + delta(p)."""

    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "embedding", "conv"})

    @abstractmethod
    def delta(self, p: Values) -> Tensor:
        """The change of the matrix, (out, in)."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        """x delta(p)ᵀ; a method may state it without forming the matrix."""
        delta = self.delta(p)
        return linear(x, delta.to(x.dtype) if x.dtype.is_floating_point else delta)

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        y = inner(x)
        side = dropout(x, self.dropout, p.training)
        # A shortcut's products do not know of groups; the whole delta does.
        grouped = isinstance(x, Patches) and x.module.groups > 1
        added = Additive.matvec(self, p, side) if grouped else self.matvec(p, side)
        gain = inner.geometry.gain
        return y + (added if gain == 1 else gain * added).to(y.dtype)

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return W + self.delta(p).to(W.dtype), b


@dataclass(frozen=True, kw_only=True)
class Transform(Method):
    """(W', b') = affine(p, W, b); a method may state `forward` without forming W'."""

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        return multiplied(inner, x, *self.affine(p, inner.weight, inner.bias))


@dataclass(frozen=True, kw_only=True)
class Intervention(Method):
    """y' = edit(p, x, y): acts on what the site gives, not on its weights.

    With `reads_entry` the input of the whole sublayer is there as `call.tap(p.site.entry)`.
    """

    targets: ClassVar[tuple[str, ...]] = ("attention-output", "mlp-output")
    reads_entry: ClassVar[bool] = False

    @abstractmethod
    def edit(self, p: Values, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """The new output, for input x (…, in) and output y (…, out) of what lies beneath."""

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        y = inner(x)
        return self.edit(p, x, y, call).to(y.dtype)


@dataclass(frozen=True, kw_only=True)
class Prompt(Method):
    """Trained embeddings before the input, at the stack that owns the input embedding."""

    targets: ClassVar[tuple[str, ...]] = ("input",)
    kinds: ClassVar[frozenset[str]] = frozenset({"stack"})
    starts_at_base: ClassVar[str | None] = "every position attends to the prompt"

    keep: bool | None = option(
        None, "its positions stay in the output; None: if a decoder reads it"
    )

    @abstractmethod
    def extend(self, p: Values, call: Call) -> Tensor:
        """The prompt: (n, d), or (batch, n, d) where it depends on the call."""

    def accepts(self, site: Site) -> str | None:
        none = "it takes no token embeddings (`input_ids` or `inputs_embeds`)"
        embeds = {"input", "decoder-input"} & site.roles
        return super().accepts(site) or (None if embeds else none)

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        return self.extend(p, call)


@dataclass(frozen=True, kw_only=True)
class Prefix(Method):
    """Trained keys and values before an attention's own, at positions before the first.

    With `reads_input` the input of the attention is there as `call.tap(p.site.name)`.
    """

    targets: ClassVar[tuple[str, ...]] = ("self-attention",)
    kinds: ClassVar[frozenset[str]] = frozenset({"attention"})
    starts_at_base: ClassVar[str | None] = "every position attends to the prefix"
    reads_input: ClassVar[bool] = False

    @abstractmethod
    def kv(self, p: Values, call: Call) -> tuple[Tensor, Tensor]:
        """Keys and values, (heads, n, width of a head) each, or (batch, heads, n, width) where they
        depend on the call."""

    @property
    @abstractmethod
    def positions(self) -> int:
        """n, the number of positions that it takes."""

    def accepts(self, site: Site) -> str | None:
        return super().accepts(site) or unextended(site.module)

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        return torch.stack(self.kv(p, call), dim=-4)


@dataclass(frozen=True, kw_only=True)
class Combine(Method):
    """Over what other adapters make of a site; they stay as they are."""

    targets: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "embedding", "conv", "block", "stack"})
    needs: ClassVar[frozenset[str]] = frozenset({"over"})
    trains_parts: ClassVar[bool] = False

    over: tuple[str, ...] = option((), "names of the adapters that it combines, attached before")

    @abstractmethod
    def combine(self, p: Values, x: Tensor, y: Tensor, parts: list[Tensor], call: Call) -> Tensor:
        """The new output, from the base's y (…, out) and the adapters' outputs, y's shape each."""

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        raise InputError(f"{self.name} acts over other adapters: see `Fuse`")


@dataclass(frozen=True, kw_only=True)
class Beside(Method):
    """A small network beside a stack: reads its blocks' outputs, changes its last one."""

    targets: ClassVar[tuple[str, ...]] = ("stack",)
    kinds: ClassVar[frozenset[str]] = frozenset({"stack"})
    by_example: ClassVar[bool] = True

    @abstractmethod
    def edit(self, p: Values, taps: Sequence[Tensor], y: Tensor, call: Call) -> Tensor:
        """The stack's new output, for its blocks' outputs and its own y, (batch, positions, d)."""

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        y = inner(x)
        stack = p.site.name
        taps = [call.tap(key) for key in call.taps if key.rpartition("#")[0] == stack]
        return self.edit(p, taps, y, call).to(y.dtype)


@dataclass(frozen=True, kw_only=True)
class Selection(Method):
    """Trains the base's own parameters, in place: no site, no law beyond "these are trained"."""

    targets: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def chosen(self, model: nn.Module) -> Sequence[str]:
        """The names of the parameters to train."""

    def init(self, site: Site) -> dict[str, Param]:
        raise InputError(f"{self.name} trains parameters of the base and acts at no site")

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        return inner(x)

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return W, b


@dataclass(frozen=True, kw_only=True)
class Composite(Method):
    """A name for several methods, each of which acts at its own targets: see decision 16."""

    targets: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()  # which refuse what does not fit them

    def accepts(self, site: Site) -> str | None:
        names = " and ".join(part.name for part in self.parts())
        return f"it stands for {names}, each of which acts at targets of its own"

    def init(self, site: Site) -> dict[str, Param]:
        raise InputError(f"{self.name}: {self.accepts(site)}")

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        return inner(x)
