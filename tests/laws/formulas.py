"""Law 10's formulas, from the papers: trained parameters at the sites that a method acts at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd

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


def _mam(site: Site) -> int:
    """A prefix of 30 at attention, a parallel adapter of width 512 beside feed-forward."""
    d = site.out_features
    return 2 * 30 * d if site.geometry.kind == "attention" else _bottleneck(d, 512)


def _gated_lora(site: Site) -> int:
    """The update of rank 8, and a gate that reads the map's input."""
    return 8 * (site.in_features + site.out_features) + site.in_features + 1


def _gated_prefix(site: Site) -> int:
    """Ten keys and values, and a gate that reads the attention's input."""
    return 2 * 10 * site.out_features + site.in_features + 1


def _gated_adapter(site: Site) -> int:
    d = site.out_features
    return _bottleneck(d, 48) + d + 1


def _unipelt(site: Site) -> int:
    if site.geometry.kind == "attention":
        return _gated_prefix(site)
    return _gated_adapter(site) if "mlp-output" in site.roles else _gated_lora(site)


def _embedded(site: Site) -> int:
    """The width of a token's embedding, which ALBERT's stack is not of."""
    return site.module.get_input_embeddings().weight.shape[1]  # type: ignore[operator]


def _rotations(n: int, b: int) -> int:
    """A skew-symmetric matrix of b x b for each of n / b blocks."""
    return n // b * (b * (b - 1) // 2)


def _halves(n: int) -> tuple[int, int]:
    """The two factors of n that are nearest to each other."""
    first = max(d for d in range(1, n + 1) if n % d == 0 and d * d <= n)
    return first, n // first


def _kronecker(site: Site) -> int:
    """C whole, and D of rank 8, or whole where 8 is half of its larger side."""
    (o1, o2), (i1, i2) = _halves(site.out_features), _halves(site.in_features)
    return o1 * i1 + (8 * (o2 + i2) if max(o2, i2) > 2 * 8 else o2 * i2)


def _sides(site: Site) -> tuple[int, int]:
    return min(site.in_features, site.out_features), max(site.in_features, site.out_features)


def _full_rank(site: Site) -> int:
    """As many products of rank 32 as make full rank: 32 numbers each, and the smaller side."""
    n = -(-_sides(site)[0] // 32)
    return n * (32 + _sides(site)[0])


def _bank(sites: Sequence[Site]) -> int:
    """256 vectors of 256 once; 256 logits for each piece of each of 4 rows and columns."""
    pieces = sum(-(-s.in_features // 256) + -(-s.out_features // 256) for s in sites)
    return 256 * 256 + 4 * 256 * pieces


# At each method's defaults.
FORMULAS: dict[str, Formula] = {
    "lora": _sum(lambda s: 8 * (s.in_features + s.out_features)),
    "qlora": _sum(lambda s: 8 * (s.in_features + s.out_features)),
    "loha": _sum(lambda s: 2 * 8 * (s.in_features + s.out_features)),
    "lokr": _sum(_kronecker),
    "hira": _sum(lambda s: 32 * (s.in_features + s.out_features)),
    "randlora": _sum(_full_rank),
    "vb-lora": _bank,
    "shared": lambda sites: 256,
    "delora": _sum(lambda s: 8 * (s.in_features + s.out_features) + 1),
    "gralora": _sum(lambda s: 32 * (s.in_features + s.out_features)),
    "ia3": _sum(lambda s: s.in_features if "down" in s.roles else s.out_features),
    "bitfit": _sum(lambda s: s.out_features),
    "whole": _sum(_own),
    "dora": _sum(lambda s: 8 * (s.in_features + s.out_features) + s.out_features),
    "oft": _sum(lambda s: _rotations(s.in_features, min(32, s.in_features))),
    "boft": _sum(lambda s: 4 * s.in_features + s.out_features),
    "hra": _sum(lambda s: 8 * s.in_features),
    "road": _sum(lambda s: s.out_features),
    "factor": _sum(lambda s: 4 * (s.in_features + s.out_features)),  # tried with rank 4
    "adalora": _sum(lambda s: 12 * (s.in_features + s.out_features + 1)),
    "fourierft": _sum(lambda s: min(1000, s.in_features * s.out_features)),
    "c3a": _sum(lambda s: s.in_features * s.out_features // gcd(s.in_features, s.out_features)),
    "miss": _sum(lambda s: 16 * s.out_features),
    "shira": _sum(lambda s: 8 * (s.in_features + s.out_features)),
    "fish": _sum(lambda s: round(0.005 * s.in_features * s.out_features)),
    "diff-pruning": _sum(lambda s: 2 * s.in_features * s.out_features),
    "vera": _sum(lambda s: 256 + s.out_features),
    "tokens": _sum(lambda s: s.in_features * s.out_features),
    "ln": _sum(_own),
    "mam": _sum(_mam),
    "unipelt": _sum(_unipelt),
    "gated-lora": _sum(_gated_lora),
    "gated-prefix": _sum(_gated_prefix),
    "gated-adapter": _sum(_gated_adapter),
    "multitask-prompt": _sum(lambda s: 20 * _embedded(s) + 2 * (20 + _embedded(s))),
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
