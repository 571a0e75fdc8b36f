"""SHiRA: Sparse High Rank Adapters. Bhardwaj et al. 2024, arXiv:2406.13175.

    W' = W + S,   S (out, in) zero but for rank (in + out) trained values at fixed places

As many numbers as LoRA of that rank trains, in a change of any rank. The values start at zero. The
places are in the file, whichever mask they came from.

Use it where adapters are switched or added to one another: each changes a few weights in a hundred,
seldom the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.core.method import Fields, Names, option
from trimtab.core.site import Site
from trimtab.core.sparse import Sparse, drawn, largest

MASKS = ("random", "magnitude", "nonzero", "data")


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The file's places hold whatever chose them; a mask of the user's own has no name here."""
    mask = config.get("mask_type", "random")
    known, seed = mask in ("random", "magnitude"), config.get("random_seed")
    return {"mask": mask if known else "data", "seed": seed if mask == "random" else None}


def _write(method: Any) -> dict[str, Any]:
    if method.mask == "nonzero":
        raise InputError(
            'shira: HF PEFT holds rank (in + out) values at a site, and mask="nonzero" has as many '
            "as the base's weight has; use format='trimtab'"
        )
    return {"mask_type": method.mask, "random_seed": method.seed}


@dataclass(frozen=True, kw_only=True)
class SHiRA(Sparse):
    """Trained values at fixed places: "random" ones; those of largest "magnitude" in the base; or
    all that are "nonzero" there, so that a pruned model keeps its zeros. "data" are places that
    `trimtab.init.fisher` chose, or another library."""

    name = "shira"
    paper = "arXiv:2406.13175"
    learning_rate = 3e-3
    hf: ClassVar[Names | None] = Names(
        peft_type="SHIRA",
        tensors={"values": "shira_weight", "indices": "shira_indices"},
        fields={"rank": "r"},
        patterns=(),
        more=Fields(("mask_type", "random_seed"), _read, _write),
    )

    rank: int = option(8, "r: a site trains r (in + out) values, as LoRA of that rank")
    mask: str = option(
        "random", 'which values: "random", "magnitude", "nonzero" (whatever r) or "data"'
    )
    seed: int | None = option(
        None, 'seed of the places of mask="random"; None: always the same places'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")
        self.require("mask", self.mask in MASKS, f"be one of {', '.join(MASKS)}")
        self.require("seed", self.seed is None or self.seed >= 0, "be at least 0")
        self.require_use("seed", self.mask == "random", 'with mask="random"')
        self.require_use("rank", self.mask != "nonzero", 'where mask is not "nonzero"')

    def accepts(self, site: Site) -> str | None:
        if (reason := super().accepts(site)) is not None:
            return reason
        if self.mask == "nonzero":
            several = "each of several matrices has another number of nonzero values"
            return several if site.geometry.count else None
        count, size = self._count(site), site.out_features * site.in_features
        return f"rank {self.rank} takes {count} values of {size}" if count > size else None

    def unused(self, sites: Sequence[Site]) -> str | None:
        if self.mask != "data":
            return super().unused(sites)
        return 'mask="data" is what trimtab.init.fisher makes of another: leave it out'

    def _count(self, site: Site) -> int:
        return self.rank * (site.out_features + site.in_features)

    def places(self, site: Site) -> Tensor:
        if self.mask == "nonzero":
            return site.matrix.cpu().flatten().nonzero()[:, 0]
        if self.mask == "magnitude":
            return largest(site.matrix.cpu().float().abs(), self._count(site))
        return drawn(self._count(site), site, self.seed).sort().values

    def allotted(self, sizes: list[int]) -> int | None:
        if self.mask == "nonzero":
            raise InputError('shira: with mask="nonzero" there are no places to choose')
        return None

    def placed(self, count: int) -> SHiRA:
        return replace(self, mask="data", seed=None)
