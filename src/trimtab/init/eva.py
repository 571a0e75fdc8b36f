"""EVA: Explained Variance Adaptation. Paischer et al. 2024, arXiv:2410.07170.

    U S Vᵀ = X - mean,   A = V[:, :r]ᵀ,   B = 0;   W' = W + s B A,   X (n, in) the site's inputs

A starts at the directions in which the site's inputs vary most on the task's data, found batch by
batch (Ross et al. 2008, incremental SVD). Ranks go where they explain most variance: Σ r of them,
at most rho r at a site; a site that gets none is left out.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.init.begin import Place, Start, free, places, plainly, require_rank, settle
from trimtab.init.observe import base_alone, several, watch


@torch.no_grad()
def eva(
    model: nn.Module,
    batches: Iterable[object],
    name: str | None = None,
    *,
    rho: float = 2.0,
    tau: float = 0.99,
    whiten: bool = False,
    passes: int = 10,
) -> Adapter:
    """Start an attached adapter (the only one, if no name is given) at its inputs' directions.

    It changes ranks, and so must come before the optimizer. A site's `alpha` changes with its rank:
    the scale of its update stays.

    Args:
        batches: data as the model takes it; gone over again until the directions stand still.
        rho: how many times its rank a site may get; 1 leaves the ranks as they are.
        tau: the cosine between a direction before and after a batch at which it stands still.
        whiten: divide the directions by the root of their singular values.
        passes: how often the batches are gone over at most.
    """
    if rho < 1:
        raise InputError(f"rho must be at least 1, not {rho}: a site may get rho times its rank")
    if tau > 1 or passes < 1:
        raise InputError(f"tau, a cosine, is at most 1, passes at least 1, not {tau}, {passes}")
    batches = several(batches)
    adapter, found = places(model, name)
    plainly(found, "EVA looks at inputs")
    for place in found:
        require_rank(place, place.method.rank)
    search = _Search(found, rho, tau)
    with base_alone(model):
        for batch in (batch for _ in range(passes) for batch in batches):
            if search.settled():
                break
            watch(model, search.open(), batch, search.take)
            search.distribute()
    search.require_seen()
    return settle(adapter, [search.start(place, whiten) for place in found])


class Directions:
    """The leading directions of what was seen so far: an incremental SVD about the mean."""

    def __init__(self, count: int, tau: float) -> None:
        self.count, self.tau = count, tau
        self.seen = 0
        self.still = torch.zeros(count, dtype=torch.bool)

    def take(self, X: Tensor) -> None:
        """Take up rows (n, in); fewer than there are directions say too little."""
        X, n = X.float(), len(X)
        if n < self.count:
            return
        mean = X.mean(0)
        rows = [X - mean]
        spread = rows[0].square().sum()
        if self.seen:
            shift = math.sqrt(self.seen * n / (self.seen + n)) * (self.mean - mean)
            rows += [self.S[:, None] * self.V, shift[None]]
            spread = self.spread + spread + shift.square().sum()
            mean = (self.seen * self.mean + n * mean) / (self.seen + n)
        _, S, V = torch.linalg.svd(torch.cat(rows), full_matrices=False)
        S, V = S[: self.count], V[: self.count]
        if self.seen:
            self.still = (torch.cosine_similarity(V, self.V).abs() >= self.tau).cpu()
        self.S, self.V, self.mean, self.spread = S, V, mean, spread
        self.seen += n

    @property
    def explained(self) -> Tensor:
        """The share of the variance that each direction explains."""
        return self.S.square() / self.spread


class _Search:
    """The directions at all sites, until those that are needed stand still."""

    def __init__(self, found: list[Place], rho: float, tau: float) -> None:
        self.places = {place.site.name: place for place in found}
        self.most = {
            place.site.name: min(
                round(place.method.rank * rho), place.site.in_features, place.site.out_features
            )
            for place in found
        }
        self.own = {name: Directions(most, tau) for name, most in self.most.items()}
        self.of: dict[str, Directions] = {}
        self.ranks: Mapping[str, int] = self.most
        self.latest: tuple[Tensor, Directions] | None = None

    def open(self) -> list[Place]:
        """Where directions that are needed still turn; at first everywhere."""
        self.latest = None
        return [place for name, place in self.places.items() if not self._still(name)]

    def _still(self, name: str) -> bool:
        own = self.of.get(name)
        most = max((self.ranks[one] for one, other in self.of.items() if other is own), default=0)
        return own is not None and bool(own.still[:most].all())

    def settled(self) -> bool:
        return bool(self.of) and all(map(self._still, self.places))

    def take(self, name: str, x: Tensor) -> None:
        """Maps that read the same input one after the other (query, key, value) share its work."""
        own, known = self.own[name], self.of.get(name)
        if self.latest is not None and self.latest[0] is x:
            shared = self.latest[1]
            if shared.count == own.count and known in (None, shared):
                self.of[name] = shared
                return
        self.of[name], self.latest = own, (x, own)
        own.take(x)

    def distribute(self) -> None:
        """Give the sum of all ranks to the directions that explain most."""
        if any(not one.seen for one in self.of.values()):
            return
        ratios = [(name, one.explained.cpu()) for name, one in self.of.items()]
        names = [name for name, ratio in ratios for _ in ratio]
        order = torch.cat([ratio for _, ratio in ratios]).argsort(descending=True, stable=True)
        budget = sum(place.method.rank for place in self.places.values())
        chosen = Counter(names[index] for index in order[:budget].tolist())
        self.ranks = {name: chosen[name] for name in self.places}

    def require_seen(self) -> None:
        for name, most in self.most.items():
            if name not in self.of or not self.of[name].seen:
                raise InputError(
                    f"{name!r} saw no batch of at least {most} positions, one for each direction: "
                    "give larger batches, a lower rank or a lower rho"
                )
        turning = [name for name in self.places if not self._still(name)]
        if turning:
            warnings.warn(
                f"at {len(turning)} sites, such as {turning[0]!r}, the directions of EVA still "
                "turn after all batches: give more data, or a lower tau",
                stacklevel=4,
            )

    def start(self, place: Place, whiten: bool) -> Start:
        directions, method = self.of[place.site.name], place.method
        rank = self.ranks[place.site.name]
        A = directions.V[:rank].clone()
        if whiten:
            A /= directions.S[:rank, None].sqrt()
        B = torch.zeros(place.site.out_features, rank, device=A.device)
        ratio = rank / method.rank
        alpha = method.alpha * (math.sqrt(ratio) if method.rslora else ratio)
        return free(place, A, B, **({"rank": rank, "alpha": alpha} if rank else {}))
