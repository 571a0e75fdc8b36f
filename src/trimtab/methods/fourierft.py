"""FourierFT: Parameter-Efficient Fine-Tuning with Discrete Fourier Transform. Gao et al. 2024,
arXiv:2405.03003.

    W' = W + scaling · Re ifft2(F),   F[u, v] = c at n places, 0 elsewhere

The places are drawn from `seed` and are the same at all sites of one shape. Only c trains. The
paper draws it from N(0, 1) (`start="gaussian"`), whose noise grows as matrices get smaller; here it
starts at zero, so that the adapted model starts at the base. ΔW is dense: it is made again in the
backward pass, and not kept.

Use it where adapters must be small whatever the width: a site costs so many coefficients. Each step
forms the whole matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.method import Additive, Fields, Names, Param, Values, option
from trimtab.core.recompute import product
from trimtab.core.site import Site
from trimtab.core.sparse import drawn, held, outside, scattered

STARTS = {"gaussian": False, "zeros": True}


@dataclass(frozen=True, kw_only=True)
class FourierFT(Additive):
    """Trained coefficients of the update's spectrum, at random places."""

    name = "fourierft"
    paper = "arXiv:2405.03003"
    learning_rate = 5e-2
    dense = True
    hf: ClassVar[Names | None] = Names(
        peft_type="FOURIERFT",
        tensors={"c": "fourierft_spectrum"},
        fields={"n_frequency": "n_frequency", "scaling": "scaling", "seed": "random_loc_seed"},
        transposed=True,
        biases="fourier_only",
        patterns=("n_frequency",),
        exact_patterns=True,
        state=("indices",),
        more=Fields(
            ("init_weights",),
            lambda config: {"start": "zeros" if config.get("init_weights") else "gaussian"},
            lambda method: {"init_weights": STARTS[method.start]},
        ),
    )

    n_frequency: int = option(1000, "n, coefficients a site, at most as many as it has weights")
    scaling: float = option(150.0, "α, by which the inverse transform is multiplied")
    seed: int = option(777, "seed of the places of the coefficients in the spectrum")
    start: str = option("zeros", 'c at the start: "zeros", or "gaussian" as in the paper')

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("n_frequency", self.n_frequency >= 1, "be at least 1")
        self.require("seed", self.seed >= 0, "be at least 0")
        self.require("start", self.start in STARTS, f"be one of {', '.join(STARTS)}")

    def settled(self, site: Site) -> FourierFT:
        size = site.out_features * site.in_features
        return self if self.n_frequency <= size else replace(self, n_frequency=size)

    def init(self, site: Site) -> dict[str, Param]:
        places = drawn(self.n_frequency, site, self.seed)
        gaussian = self.start == "gaussian"
        c = torch.randn(places.shape) if gaussian else torch.zeros(places.shape)
        return {"c": Param(c, exact=True), "indices": held(places, site.in_features)["indices"]}

    def misfit(self, p: Values) -> str | None:
        return outside(p.indices, p.site)

    def delta(self, p: Values) -> Tensor:
        """The real part is the transform of F's even part, half of whose columns say all."""
        size = (p.site.out_features, p.site.in_features)
        sides = p.indices.new_tensor(size)[:, None]
        even = scattered(p.c, p.indices, *size) + scattered(p.c, (sides - p.indices) % sides, *size)
        half = even[:, : size[1] // 2 + 1].to(torch.promote_types(even.dtype, torch.complex64))
        return self.scaling / 2 * torch.fft.irfft2(half, s=size)

    def matvec(self, p: Values, x: Any) -> Tensor:
        dtype = x.dtype if x.dtype.is_floating_point else p.c.dtype
        return product(x, lambda: self.delta(p).to(dtype))
