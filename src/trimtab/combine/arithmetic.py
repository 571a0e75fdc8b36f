"""How tensors of several tasks become one.

Task arithmetic: Ilharco et al. 2022, arXiv:2212.04089.   Σ wᵢ tᵢ
TIES: Yadav et al. 2023, arXiv:2306.01708.   The largest of each tᵢ; the sign that most of their sum
    has, at every place; the weighted mean of those that have it.
DARE: Yu et al. 2023, arXiv:2311.03099.   Each value of tᵢ is kept with probability `density`, and
    divided by it; then as task arithmetic, or as TIES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core.errors import InputError, nearest


@dataclass(frozen=True)
class Recipe:
    """One way of combining: what is left of each tensor, and how they are put together."""

    thin: Callable[[Tensor, float, torch.Generator], Tensor] | None
    elect: bool


def largest(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """The values of largest magnitude, the share `density` of all; zero elsewhere."""
    kept = tensor.abs().flatten().topk(int(density * tensor.numel())).indices
    mask = torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)
    mask[kept] = True
    return tensor * mask.view_as(tensor)


def drawn(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Values drawn at random, divided by their share, so that the mean stays."""
    chance = torch.full(tensor.shape, density)
    return tensor * torch.bernoulli(chance, generator=generator).to(tensor) / density


RECIPES = {
    "linear": Recipe(None, elect=False),
    "ties": Recipe(largest, elect=True),
    "dare_linear": Recipe(drawn, elect=False),
    "dare_ties": Recipe(drawn, elect=True),
    "magnitude_prune": Recipe(largest, elect=False),
}
METHODS = (*RECIPES, "cat", "svd", *(f"{name}_svd" for name in RECIPES if name != "linear"))


@dataclass(frozen=True)
class Way:
    """A method of combining with its options, checked."""

    method: str
    density: float | None = None
    sign: str = "total"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(
                f"no way of combining is called {self.method!r}; {nearest(self.method, METHODS)}"
            )
        thins = self.recipe.thin is not None
        numeric = isinstance(self.density, int | float)
        if thins and not (numeric and 0 < self.density <= 1):  # type: ignore[operator]
            raise InputError(
                f"{self.method} keeps a share of the values: density must lie in (0, 1], not "
                f"{self.density!r}"
            )
        if not thins and self.density is not None:
            raise InputError(f"{self.method} keeps all values: leave density out")
        if self.sign not in ("total", "frequency"):
            raise InputError(f"sign is elected by 'total' or 'frequency', not {self.sign!r}")
        if self.sign != "total" and not self.recipe.elect:
            raise InputError(f"{self.method} elects no signs: leave sign out")
        if self.seed and self.recipe.thin is not drawn:
            raise InputError(f"{self.method} draws nothing at random: leave seed out")

    @property
    def recipe(self) -> Recipe:
        name = self.method.removesuffix("_svd")
        return RECIPES["linear" if name in ("svd", "cat") else name]

    @property
    def linear(self) -> bool:
        """Whether it takes the changes as they are, and adds them by their weights."""
        return self.recipe.thin is None and not self.recipe.elect

    @property
    def decomposes(self) -> bool:
        """Whether it acts on the changes of the weights, and not on their factors."""
        return self.method.endswith("svd")

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def combine(
        self, tensors: Sequence[Tensor], weights: Sequence[float], generator: torch.Generator
    ) -> Tensor:
        """One tensor out of several, of the same shape."""
        thin, share = self.recipe.thin, 1.0 if self.density is None else self.density
        parts = [t if thin is None else thin(t, share, generator) for t in tensors]
        weighted = torch.stack([w * t for w, t in zip(weights, parts, strict=True)])
        if not self.recipe.elect:
            return weighted.sum(0)
        signs = torch.stack(parts).sign()
        votes = signs if self.sign == "frequency" else torch.stack(parts)
        agree = signs == torch.where(votes.sum(0) >= 0, 1.0, -1.0)
        return (weighted * agree).sum(0) / agree.sum(0).clamp_min(1)
