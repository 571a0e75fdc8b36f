"""Law 10's formulas, from the papers: trained parameters at the sites that a method acts at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trimtab.core.site import Site

Formula = Callable[[Sequence[Site]], int]


def _sum(one: Callable[[Site], int]) -> Formula:
    return lambda sites: sum(one(site) for site in sites)


# At each method's defaults.
FORMULAS: dict[str, Formula] = {
    "lora": _sum(lambda s: 8 * (s.in_features + s.out_features)),
    "loha": _sum(lambda s: 2 * 8 * (s.in_features + s.out_features)),
    "ia3": _sum(lambda s: s.in_features if "down" in s.roles else s.out_features),
    "bitfit": _sum(lambda s: s.out_features),
    "whole": _sum(lambda s: sum(p.numel() for p in s.module.parameters(recurse=False))),
}
