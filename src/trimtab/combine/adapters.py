"""Several trained adapters of one base into one new adapter, as HF PEFT's `add_weighted_adapter`.

linear and its kin   A = Σ √|wᵢ sᵢ| sgn(wᵢ) Aᵢ,   B = Σ √|wᵢ sᵢ| Bᵢ: factor by factor, rough
cat                  A = [w₁ s₁ A₁; …],   B = [B₁, …]: exact, of the sum of the ranks
svd, …_svd           the changes of the weights are combined, then cut to a rank
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.adapt import admit
from trimtab.combine.arithmetic import Way
from trimtab.core.adapter import Adapter, carries, intact, record, unwrap
from trimtab.core.delta import Delta
from trimtab.core.errors import InputError
from trimtab.core.lowrank import LowRank, Update
from trimtab.core.method import Additive, Method
from trimtab.core.registry import build
from trimtab.core.site import Site
from trimtab.init.begin import halves, matrix, require_base, svd
from trimtab.match import sites
from trimtab.methods.whole import Whole
from trimtab.store.verbs import place_read

LOW_RANK, BIASES = "lora", "bitfit"
"""What a combined adapter consists of, beside modules taken over whole."""


@torch.no_grad()
def adapters(
    model: nn.Module,
    weights: Mapping[str, float],
    *,
    into: str,
    method: str = "svd",
    rank: int | None = None,
    density: float | None = None,
    sign: str = "total",
    seed: int = 0,
) -> Adapter:
    """Combine adapters into a new LoRA called `into`, make it the active one, and return it.

    Where one of them has no site, its change there is zero. Biases are combined alike. Of a module
    that several of them trained whole, such as a head, linear, cat and svd take the mean by the
    weights, as a soup of models does; other ways refuse it. One that one alone trained is taken
    over.

    Args:
        weights: adapter -> weight, which may be negative.
        method: linear, cat, svd, ties, dare_linear, dare_ties, magnitude_prune; the last four also
            with `_svd`. Of adapters other than LoRA the changes of the weights can be combined: svd
            and the `_svd` ones.
        rank: of what svd leaves; left out, the largest of the adapters'.
        density: the share of values that ties, dare and magnitude_prune keep.
        sign: how ties elects signs, by "total" or by "frequency".
        seed: of what dare draws.

    Raises:
        InputError: an unknown adapter, one that changes no weights, ranks that differ where factors
            are combined, a density out of bounds, an option that the way does not use.
    """
    way = Way(method, density, sign, seed)
    low = rank is not None and (not isinstance(rank, int) or rank < 1)
    if low or (rank is not None and not way.decomposes):
        raise InputError(
            f"rank={rank!r}: only svd and the _svd methods take a rank, a whole number, at least 1"
            if low or way.method != "cat"
            else "cat has the sum of the ranks: leave rank out, or use method='svd'"
        )
    if not isinstance(weights, Mapping):
        raise InputError(f"weights is {{'name': 1.0, …}}, and not {weights!r:.60}")
    record_ = record(model)
    parts = [record_.adapter(name) for name in weights]
    if not parts:
        raise InputError("no adapter is named: weights={'name': 1.0}")
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise InputError(f"the weight of {name!r} must be finite, a number, not {weight!r}")
    intact(model, parts)
    admit(model, into)
    found = _Combined(model, way, list(weights.values()), parts, rank)
    known = {site.name: site for site in sites(unwrap(model))}
    for name, site in known.items():
        held = [[d for at, d in part.deltas() if at == name] for part in parts]
        if any(held):
            found.at(site, held)
    return place_read(model, into, found.pairs, found.tensors)


@dataclass
class _Combined:
    """The new adapter, as far as it is known."""

    model: nn.Module
    way: Way
    weights: list[float]
    parts: list[Adapter]
    rank: int | None
    pairs: list[tuple[Site, Method]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = self.way.generator()
        for part in self.parts:
            if part.selection is not None:
                raise InputError(
                    f"{part.name!r} trains the base's own parameters: it is no adapter"
                )
            for site, delta in part.deltas():
                self._require(part.name, site, delta)
        mapped = any(
            delta.method.name not in (Whole.name, BIASES)
            for part in self.parts
            for _, delta in part.deltas()
        )
        if self.rank is not None and not mapped:
            raise InputError(
                "rank: none of the adapters changes a matrix, which a rank would be of: leave it "
                "out"
            )
        if self.rank is None and self.way.decomposes and mapped:
            ranks = [
                delta.method.factors(delta.values(torch.float32))[0].shape[-2]
                for part in self.parts
                for _, delta in part.deltas()
                if isinstance(delta.method, LowRank)
            ]
            if not ranks:
                raise InputError("none of the adapters has a rank: say which, rank=8")
            self.rank = max(ranks)

    def _require(self, adapter: str, site: str, delta: Delta) -> None:
        method = delta.method
        if method.name in (Whole.name, BIASES):
            return
        own = type(method)
        if own.affine is Method.affine or delta.site.geometry.kind not in Additive.kinds:
            raise InputError(
                f"{adapter!r} has {method.name} at {site!r}, which is no change of a matrix that a "
                "LoRA could hold: it cannot be combined (see Stack and Mix)"
            )
        if not self.way.decomposes and not _is_lora(method):
            raise InputError(
                f"{self.way.method} combines factors, and {adapter!r} has {method.name} at "
                f"{site!r}: use svd, or {'ties' if self.way.method == 'cat' else self.way.method}"
                "_svd"
            )

    def at(self, site: Site, held: Sequence[Sequence[Delta]]) -> None:
        """Combine what the adapters have at one site."""
        if any(d.method.name == Whole.name for deltas in held for d in deltas):
            return self._put(site, Whole(), self._mean(site, held))
        maps = [[d for d in deltas if d.method.name != BIASES] for deltas in held]
        shifts = [_shift(site, deltas) for deltas in held]
        if any(maps):
            if self.way.decomposes:
                changes = [_change(self.model, site, deltas) for deltas in maps]
                shifts = [_sum(a, b) for a, (_, b) in zip(shifts, changes, strict=True)]
                A, B = self._decomposed(maps, [W for W, _ in changes])
            else:
                A, B = self._by_factors(site, maps)
            size = A.shape[-2]
            self._put(site, build(LOW_RANK, {"rank": size, "alpha": float(size)}), {"A": A, "B": B})
        given = [(w, b) for w, b in zip(self.weights, shifts, strict=True) if b is not None]
        if given:
            weights, biases = zip(*given, strict=True)
            c = self.way.combine(biases, weights, self.generator)
            self._put(site, build(BIASES, {}), {"c": c})
        return None

    def _put(self, site: Site, method: Method, tensors: Mapping[str, Tensor]) -> None:
        self.pairs.append((site, method))
        self.tensors |= {f"{site.name}.{method.name}.{n}": t.cpu() for n, t in tensors.items()}

    def _mean(self, site: Site, held: Sequence[Sequence[Delta]]) -> dict[str, Tensor]:
        """Of a module that they trained whole: a soup (Wortsman 2022, arXiv:2203.05482)."""
        every = zip(self.weights, self.parts, held, strict=True)
        acting = [(weight, part.name, own) for weight, part, own in every if own]
        if any(d.method.name != Whole.name for _, _, own in acting for d in own):
            raise InputError(
                f"{site.name!r} is trained whole by one adapter, and another changes it: a mean of "
                "the two is none of either. Attach what is to be combined without `train=`, or "
                "train the module whole in all"
            )
        names = " and ".join(repr(name) for _, name, _ in acting)
        if len(acting) > 1 and not self.way.linear:
            raise InputError(
                f"{site.name!r} is trained whole by {names}, and {self.way.method} keeps a part of "
                "what each changes, where a whole module stands in the base's place: use linear, "
                "cat or svd, which average them, or keep such modules apart"
            )
        if len(acting) > 1 and min(weight for weight, _, _ in acting) <= 0:
            raise InputError(
                f"{site.name!r} is trained whole by {names}, whose mean takes weights above 0, not "
                f"{[weight for weight, _, _ in acting]}"
            )
        total = sum(weight for weight, _, _ in acting)
        shares = [weight / total for weight, _, _ in acting] if len(acting) > 1 else [1.0]
        tensors = [own[0].tensors() for _, _, own in acting]
        return {
            name: torch.stack([s * t[name] for s, t in zip(shares, tensors, strict=True)]).sum(0)
            for name in tensors[0]
        }

    def _decomposed(
        self, maps: Sequence[Sequence[Delta]], changes: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        assert self.rank is not None
        if self.way.method == "svd" and all(_is_lora(d.method) for deltas in maps for d in deltas):
            return cut(*self._side_by_side(maps), self.rank)
        given = [(w, W) for w, W in zip(self.weights, changes, strict=True) if W is not None]
        weights, matrices = zip(*given, strict=True)
        return halves(*svd(self.way.combine(matrices, weights, self.generator), self.rank), 1.0)

    def _side_by_side(self, maps: Sequence[Sequence[Delta]]) -> tuple[Tensor, Tensor]:
        """(A, B) of the weighted sum, of the sum of the ranks."""
        downs, ups = [], []
        for weight, deltas in zip(self.weights, maps, strict=True):
            for delta in deltas:
                A, B, scale = _factors(delta)
                downs.append(weight * scale * A)
                ups.append(B)
        return torch.cat(downs, -2), torch.cat(ups, -1)

    def _by_factors(self, site: Site, maps: Sequence[Sequence[Delta]]) -> tuple[Tensor, Tensor]:
        if self.way.method == "cat":
            return self._side_by_side(maps)
        downs, ups, signed, plain = [], [], [], []
        for weight, deltas in zip(self.weights, maps, strict=True):
            for delta in deltas:
                A, B, scale = _factors(delta)
                root = math.sqrt(abs(weight * scale))
                downs.append(A)
                ups.append(B)
                signed.append(math.copysign(root, weight * scale))
                plain.append(root)
        if len({A.shape for A in downs}) > 1:
            raise InputError(
                f"{self.way.method} combines factors of one rank, and at {site.name!r} there are "
                f"{sorted({A.shape[-2] for A in downs})}: use cat or svd"
            )
        A = self.way.combine(downs, signed, self.generator)
        return A, self.way.combine(ups, plain, self.generator)


def _is_lora(method: Method) -> bool:
    return isinstance(method, Update)


def _factors(delta: Delta) -> tuple[Tensor, Tensor, float]:
    method: Any = delta.method
    return (*method.factors(delta.values(torch.float32)), method.scale)


def _shift(site: Site, deltas: Sequence[Delta]) -> Tensor | None:
    """The trained shift of the bias, if there is one."""
    found = [delta.c.detach() for delta in deltas if delta.method.name == BIASES]
    return found[0] if found else None


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else (one if other is None else one + other)


def _change(
    model: nn.Module, site: Site, deltas: Sequence[Delta]
) -> tuple[Tensor | None, Tensor | None]:
    """(W' - W, b' - b) as the laws there make them at evaluation; None where nothing changes."""
    if not deltas:
        return None, None
    geometry = site.geometry
    if all(isinstance(delta.method, Additive) for delta in deltas):  # nothing cancels
        count = (geometry.count,) if geometry.count else ()
        W = torch.zeros(*count, site.out_features, site.in_features, device=site.device)
        bias = None
    else:
        if carries(model):
            require_base(model)
        W, bias = matrix(site), site.bias
    own = {"weight": geometry.store(W), **({} if bias is None else {"bias": bias.float()})}
    before = dict(own)
    for delta in deltas:
        training = delta.training
        try:
            own = delta.method.rewrite(delta.eval().values(torch.float32), own, geometry)
        finally:
            delta.train(training)
    shift = own["bias"] - before["bias"] if "bias" in before else own.get("bias")
    changed = shift is not None and bool(shift.any())
    return geometry.read(own["weight"]) - W, shift if changed else None


def cut(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(A, B) of the best approximation of B A of this rank, without forming it."""
    Qb, Rb = torch.linalg.qr(B)
    Qa, Ra = torch.linalg.qr(A.mT)
    U, S, V = svd(Rb @ Ra.mT, rank)
    A, B = halves(U, S, V, 1.0)
    return A @ Qa.mT, Qb @ B
