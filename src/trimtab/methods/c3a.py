"""C3A: Parameter-Efficient Fine-Tuning via Circular Convolution. Chen et al. 2024,
arXiv:2407.19342.

    W' = W + C / in,   C = blocks of b x b, each circulant: C_ij[k, l] = w_ij[(l - k) mod b]

A block has b parameters and any rank up to b, and multiplies by fast Fourier transforms,
C_ij x_j = irfft(conj(rfft(w_ij)) rfft(x_j)), so that no matrix is formed. Division by the input's
width is the authors' code's. The kernels start at random, as there.

Use it where an update of full rank should cost few numbers: Fourier products stand for the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.method import Additive, Fields, Names, Param, Values, option
from trimtab.core.operator import Patches
from trimtab.core.site import Site

STARTS = ("xavier_uniform", "kaiming_uniform", "gaussian", "zeros")


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    start = config.get("init_weights", False)
    return {"start": {True: "zeros", False: STARTS[0], None: STARTS[0]}.get(start, start)}


@dataclass(frozen=True, kw_only=True)
class C3A(Additive):
    """An update of circulant blocks, each of one row of trained numbers."""

    name = "c3a"
    paper = "arXiv:2407.19342"
    learning_rate = 0.3
    starts_at_base: ClassVar[str | None] = "the kernels start at random, as the authors' do"
    hf: ClassVar[Names | None] = Names(
        peft_type="C3A",
        tensors={"w": "c3a_kernel"},
        fields={"block_size": "block_size"},
        biases="c3a_only",
        patterns=("block_size",),
        exact_patterns=True,
        more=Fields(
            ("init_weights",),
            _read,
            lambda method: {"init_weights": method.start == "zeros" or method.start},
        ),
    )

    block_size: int = option(
        0, "b, a divisor of both widths; 0: their greatest common one, for the fewest numbers"
    )
    start: str = option(
        "xavier_uniform",
        'how the kernels start: "xavier_uniform", "kaiming_uniform", "gaussian", "zeros"',
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("block_size", self.block_size >= 0, "be at least 0")
        self.require("start", self.start in STARTS, f"be one of {', '.join(STARTS)}")

    def accepts(self, site: Site) -> str | None:
        if (reason := super().accepts(site)) is not None:
            return reason
        common = math.gcd(site.out_features, site.in_features)
        if self.block_size and common % self.block_size:
            widths = f"{site.out_features} x {site.in_features}"
            return f"blocks of {self.block_size} do not divide {widths}; those of {common} do"
        return "its widths have no common divisor for blocks" if common == 1 else None

    def settled(self, site: Site) -> C3A:
        common = math.gcd(site.out_features, site.in_features)
        return self if self.block_size else replace(self, block_size=common)

    def init(self, site: Site) -> dict[str, Param]:
        out, width, b = site.out_features, site.in_features, self.block_size
        bound = {STARTS[0]: math.sqrt(6 / (width + out)), STARTS[1]: math.sqrt(1 / width)}
        w = torch.zeros(out // b, width // b, b)
        if self.start in bound:
            w.uniform_(-bound[self.start], bound[self.start])
        elif self.start == "gaussian":
            w.normal_()
        return {"w": Param(w, exact=True)}

    def delta(self, p: Values) -> Tensor:
        n, b = p.w.shape[-2:]
        k = torch.arange(b, device=p.w.device)
        blocks = p.w[..., (k - k[:, None]) % b]  # (m, n, b, b)
        return blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2) / (n * b)

    def matvec(self, p: Values, x: Any) -> Tensor:
        if isinstance(x, Patches) or not x.dtype.is_floating_point:
            return super().matvec(p, x)
        n, b = p.w.shape[-2:]
        X = torch.fft.rfft(x.to(p.w.dtype).unflatten(-1, (n, b)))
        Y = torch.einsum("...nk,mnk->...mk", X, torch.fft.rfft(p.w).conj())
        return torch.fft.irfft(Y, n=b).flatten(-2) / (n * b)
