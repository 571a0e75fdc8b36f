"""A LoRA out of the difference of two full models.

    U S Vᵀ = W_tuned - W_base,   A = √S_r V_rᵀ,   B = U_r √S_r

The best approximation of every rank (Eckart and Young 1936). What it cannot hold, biases, norms,
embeddings, heads, is kept exactly beside it, or left out and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.adapt import admit
from trimtab.combine.adapters import BIASES, LOW_RANK
from trimtab.core.adapter import Adapter, carries, unwrap
from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.core.method import Method
from trimtab.core.registry import build
from trimtab.core.site import Site
from trimtab.core.walk import walk
from trimtab.init.begin import elsewhere, halves, matrix, require_base, svd
from trimtab.match import Target, match, sites
from trimtab.methods.whole import Whole
from trimtab.store.verbs import place_read


@dataclass(frozen=True)
class Extraction:
    """What was extracted: ranks by site; of each site's difference the share (by norm) that its
    rank leaves out; parameters kept exactly beside it; parameters dropped, which differ all the
    same."""

    adapter: Adapter
    ranks: Mapping[str, int]
    missing: Mapping[str, float]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        worst = max(self.missing.values(), default=0.0)
        return (
            f"{self.adapter.name}: {sum(self.ranks.values())} ranks at {len(self.ranks)} sites, "
            f"at most {worst:.1%} of a difference missing; {len(self.kept)} parameters kept "
            f"exactly, {len(self.dropped)} dropped"
            + (
                f" ({', '.join(self.dropped[:4])}{', …' * (len(self.dropped) > 4)})"
                * bool(self.dropped)
            )
        )


@torch.no_grad()
def extract(
    model: nn.Module,
    tuned: nn.Module | Mapping[str, Tensor],
    *,
    rank: int | None = None,
    energy: float | None = None,
    to: Target = "all-linear",
    rest: str = "keep",
    name: str = "extracted",
) -> Extraction:
    """Put an adapter on the base whose changes approximate those of a fully tuned model, make it
    the active one, and report.

    Args:
        model: the base, as it was before tuning.
        tuned: the tuned model, or its state dict.
        rank: the largest rank at a site.
        energy: the share of each difference's squared norm to hold, by as small a rank as does.
        to: the target whose differences become low-rank.
        rest: "keep" holds every other difference exactly (biases as shifts, modules whole), and
            fails where it cannot; "drop" leaves them out.

    Raises:
        AdapterMismatch: models that have not the same parameters.
        InputError: neither rank nor energy; a difference that cannot be kept; no difference at all.
    """
    if rank is None and energy is None:
        raise InputError("say how much to hold: rank=16, or energy=0.9 of each difference")
    low = rank is not None and (not isinstance(rank, int) or rank < 1)
    share = energy is None or (isinstance(energy, int | float) and 0 < energy <= 1)
    if low or not share:
        raise InputError(
            "rank must be at least 1, a whole number, and energy lie in (0, 1], not "
            f"{rank!r}, {energy!r}"
        )
    if not isinstance(tuned, nn.Module | Mapping):
        raise InputError(f"tuned is a model or its state dict, and not {type(tuned).__name__}")
    if rest not in ("keep", "drop"):
        raise InputError(f"rest is 'keep' or 'drop', not {rest!r}")
    admit(model, name)
    if carries(model):
        require_base(model)
    base = unwrap(model)
    found = _Difference(base, _plain(tuned.state_dict() if isinstance(tuned, nn.Module) else tuned))
    for site in match(base, to, build(LOW_RANK, {})):
        found.approximate(site, rank, energy)
    if rest == "keep":
        found.keep()
    if not found.pairs:
        raise InputError(
            "the two models do not differ anywhere"
            if not found.open
            else f"the target {to!r} has no differences; these have: {sorted(found.open)[:4]}"
        )
    order = {site.name: index for index, site in enumerate(sites(base))}
    found.pairs.sort(key=lambda pair: order[pair[0].name])
    adapter = place_read(model, name, found.pairs, found.tensors)
    return Extraction(
        adapter, found.ranks, found.missing, tuple(found.kept), tuple(sorted(found.open))
    )


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if ".deltas." not in f".{name}"}


class _Difference:
    """Of two models: what of it is held, and by what; `open` is what is not, yet."""

    def __init__(self, base: nn.Module, tuned: Mapping[str, Tensor]) -> None:
        self.base, self.tuned = base, tuned
        own = _plain(base.state_dict())
        for one, other, what in ((own, tuned, "lacks"), (tuned, own, "has besides")):
            strange = sorted(one.keys() - other.keys())
            if strange:
                raise AdapterMismatch(f"the tuned model {what} {strange[:4]}: tune this very base")
        for name, tensor in own.items():
            if tensor.shape != tuned[name].shape:
                raise AdapterMismatch(
                    f"{name!r} is {tuple(tensor.shape)} here and {tuple(tuned[name].shape)} in the "
                    "tuned model: resize the base alike first"
                )
        self.own = own
        self.holders = {  # module -> the names of its own parameters
            name: [key for key, p in module._parameters.items() if p is not None]
            for name, module in walk(base, once=False)
        }
        self.identity = {
            f"{name}.{key}".lstrip("."): id(getattr(base.get_submodule(name), key))
            for name, keys in self.holders.items()
            for key in keys
        }
        self.open = {name for name, tensor in own.items() if self._differs(name, tensor)}
        self.pairs: list[tuple[Site, Method]] = []
        self.tensors: dict[str, Tensor] = {}
        self.ranks: dict[str, int] = {}
        self.missing: dict[str, float] = {}
        self.kept: list[str] = []
        self.rows: dict[str, Tensor] = {}

    def _differs(self, name: str, tensor: Tensor) -> bool:
        other = self.tuned[name].to(tensor.device)
        if not tensor.is_floating_point():
            return not torch.equal(tensor, other)
        return not torch.equal(tensor.float(), other.float())

    def _put(self, site: Site, method: Method, tensors: Mapping[str, Tensor]) -> None:
        self.pairs.append((site, method))
        self.tensors |= {f"{site.name}.{method.name}.{n}": t.cpu() for n, t in tensors.items()}

    def approximate(self, site: Site, rank: int | None, energy: float | None) -> None:
        """Hold the difference of a site's matrix by a low rank, and that of its bias."""
        W = matrix(site)
        change = elsewhere(site, self.tuned).to(W) - W
        if change.any():
            U, S, V = svd(change, min(change.shape[-2:]))
            squares = S.double().square()
            held = squares.cumsum(-1) / squares.sum(-1, keepdim=True).clamp_min(1e-30)
            size = S.shape[-1]
            if energy is not None:  # of experts the most that one needs
                size = int((held < energy * (1 - 1e-12)).sum(-1).max()) + 1
            size = min(size, rank or size, S.shape[-1])
            A, B = halves(U[..., :size], S[..., :size], V[..., :size, :], 1.0)
            method = build(LOW_RANK, {"rank": size, "alpha": float(size)})
            self._put(site, method, {"A": A, "B": B})
            self.ranks[site.name] = size
            left = squares[..., size:].sum() / squares.sum()
            self.missing[site.name] = float(left.clamp_min(0).sqrt())
        self._close(site, f"{site.parameter or 'weight'}")

    def _close(self, site: Site, leaf: str) -> None:
        """The tensor of this name is held, or of a fused map the part of it."""
        for home in site.homes:
            name = f"{home}.{leaf}".lstrip(".")
            if site.rows is None or site.whole is None:
                self.open.discard(name)
            elif name in self.open:
                whole = site.whole.read(self.own[name])
                seen = self.rows.setdefault(
                    name, (whole != site.whole.read(self.tuned[name].to(whole))).any(-1)
                )
                seen[slice(*site.rows)] = False
                if not seen.any():
                    self.open.discard(name)

    def keep(self) -> None:
        """Hold all that is open exactly, or say what cannot be."""
        self._keep_biases()
        acting = {home for site, _ in self.pairs for home in site.homes}
        whole = Whole()
        for site in sites(self.base):
            names = {
                f"{home}.{n}".lstrip(".") for home in site.homes for n in self.holders.get(home, ())
            }
            free = not acting & set(site.homes) and site.geometry.kind != "stack"
            if not names & self.open or not free or whole.accepts(site) or site.homes == ("",):
                continue
            if self._stands_for_others(site):
                continue
            own = {
                n: self.tuned[f"{site.homes[0]}.{n}"].float() for n in self.holders[site.homes[0]]
            }
            self._put(site, whole, own)
            tied = {self.identity[one] for one in names}
            self.kept += [one for one in sorted(self.open) if self.identity.get(one) in tied]
            acting |= set(site.homes)
        self.kept = sorted({*self.kept})
        self.open -= set(self.kept)
        if self.open:
            raise InputError(
                f"these differ and cannot be kept exactly: {sorted(self.open)[:6]}. Add them to "
                "the target, or leave them out by rest='drop', which reports them"
            )

    def _stands_for_others(self, site: Site) -> bool:
        """An embedding that no stack reads, tied to those that they do, is never called."""
        if site.geometry.kind != "embedding" or "embedding" in site.roles:
            return False
        reading = [other for other in sites(self.base) if "embedding" in other.roles]
        return any(other.weight is site.weight for other in reading)

    def _keep_biases(self) -> None:
        """Of maps that are held by a low rank."""
        method = build(BIASES, {})
        for site in [site for site, _ in self.pairs]:
            if site.parameter is not None or site.rows is not None or method.accepts(site):
                continue
            names = [f"{home}.bias" for home in site.homes]
            if names[0] in self.open and site.bias is not None:
                shift = self.tuned[names[0]].float().to(site.bias.device) - site.bias.float()
                self._put(site, method, {"c": shift.detach()})
                self.kept += [name for name in names if name in self.open]
                self.open -= set(names)
