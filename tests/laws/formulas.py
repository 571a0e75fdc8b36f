"""Law 10's formulas, from the papers: trained parameters at the sites that a method acts at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trimtab.core.layout import runs
from trimtab.core.site import Site

Formula = Callable[[Sequence[Site]], int]


def _sum(one: Callable[[Site], int]) -> Formula:
    return lambda sites: sum(one(site) for site in sites)


def _blocks(site: Site) -> int:
    return len(runs(site.module)[0].blocks)


def _bottleneck(d: int, m: int) -> int:
    """D (m, d), U (d, m) and their biases."""
    return 2 * m * d + m + d


def _side(site: Site) -> int:
    d = site.out_features
    w = d // 8
    return _blocks(site) * (w * d + 1 + 2 * w * w) + d * w


def _knowledge(site: Site) -> int:
    """Two projections and two layers of width 64 a block that is read; one map at the end."""
    d = site.out_features
    return min(3, _blocks(site)) * (64 * 2 * d + 2 * 12 * 64**2 + d * 64) + d**2


def _own(site: Site) -> int:
    return sum(p.numel() for p in site.module.parameters(recurse=False))


def _compacter(sites: Sequence[Site]) -> int:
    """The slow weights, n matrices of n x n, once; the fast ones, rank one, at every site."""
    return 4**3 + sum(3 * (24 + site.out_features) for site in sites)


def _conditional(sites: Sequence[Site]) -> int:
    film = 2 * 64 * 32
    return 2 * 32 + sum(_bottleneck(site.out_features, 64) + film for site in sites)


def _embedded(site: Site) -> int:
    """The width of a token's embedding, which ALBERT's stack is not of."""
    return site.module.get_input_embeddings().weight.shape[1]  # type: ignore[operator]


def _rotations(n: int, b: int) -> int:
    """A skew-symmetric matrix of b x b for each of n / b blocks."""
    return n // b * (b * (b - 1) // 2)


# At each method's defaults.
FORMULAS: dict[str, Formula] = {
    "lora": _sum(lambda s: 8 * (s.in_features + s.out_features)),
    "qlora": _sum(lambda s: 8 * (s.in_features + s.out_features)),
    "loha": _sum(lambda s: 2 * 8 * (s.in_features + s.out_features)),
    "ia3": _sum(lambda s: s.in_features if "down" in s.roles else s.out_features),
    "bitfit": _sum(lambda s: s.out_features),
    "whole": _sum(_own),
    "dora": _sum(lambda s: 8 * (s.in_features + s.out_features) + s.out_features),
    "oft": _sum(lambda s: _rotations(s.in_features, min(32, s.in_features))),
    "adalora": _sum(lambda s: 12 * (s.in_features + s.out_features + 1)),
    "diff-pruning": _sum(lambda s: 2 * s.in_features * s.out_features),
    "vera": _sum(lambda s: 256 + s.out_features),
    "tokens": _sum(lambda s: s.in_features * s.out_features),
    "ln": _sum(_own),
    "prompt": _sum(lambda s: 20 * _embedded(s)),
    "p-tuning": _sum(lambda s: 20 * _embedded(s) + 3 * _embedded(s) * (_embedded(s) + 1)),
    "prefix": _sum(lambda s: 2 * 20 * s.out_features),
    "side": _sum(_side),
    "knowledge": _sum(_knowledge),
    "fusion": _sum(lambda s: 3 * s.out_features**2),
    "houlsby": _sum(lambda s: _bottleneck(s.out_features, 64)),
    "parallel": _sum(lambda s: _bottleneck(s.out_features, 64)),
    "pfeiffer": _sum(lambda s: _bottleneck(s.out_features, s.out_features // 16)),
    "compacter": _compacter,
    "compacter++": _compacter,
    "reft": _sum(lambda s: 2 * 4 * s.out_features + 4),
    "conditional": _conditional,
    "coda": _sum(lambda s: _bottleneck(s.out_features, 64) + s.out_features),
}
