"""What an adapter amounts to: sites, parameters, bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from trimtab.core.adapter import intact, record, unwrap
from trimtab.core.walk import base_parameters, shapes


@dataclass(frozen=True)
class Summary:
    """What an adapter is: parameters and bytes as saved, in all and by site, beside the base's."""

    name: str
    methods: tuple[str, ...]
    sites: Mapping[str, int]
    trainable: int
    bytes: int
    total: int

    @property
    def share(self) -> float:
        """Trained parameters over the base's."""
        return self.trainable / self.total

    def __str__(self) -> str:
        return (
            f"{self.name}: {', '.join(self.methods)} at {len(self.sites)} sites, "
            f"{self.trainable:,} parameters ({percent(self.share)} of {self.total:,}), "
            f"{size(self.bytes)}"
        )


def percent(share: float) -> str:
    """A share in words: two places, or the first digit of one that is smaller."""
    places = 2 if share >= 1e-4 or not share else -math.floor(math.log10(100 * share))
    return f"{100 * share:.{places}f}%"


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def summary(model: nn.Module, name: str | None = None) -> Summary:
    """Sites, parameters and bytes of an adapter (the only one, if no name is given)."""
    adapter = record(model).adapter(name)
    intact(model, [adapter])
    counts = {name: parameter.numel() for name, parameter in adapter.selected.items()}
    for site, delta in adapter.deltas():
        counts[site] = counts.get(site, 0) + sum(p.numel() for p in delta.parameters())
    base = unwrap(model)
    packed = shapes(base)  # of codes the number of what they stand for
    total = sum(math.prod(packed.get(key, tuple(p.shape))) for key, p in base_parameters(base))
    return Summary(
        name=adapter.name,
        methods=tuple(sorted({method.name for _, method in adapter.entries})),
        sites=counts,
        trainable=sum(p.numel() for p in adapter.parameters()),
        bytes=sum(t.numel() * t.element_size() for t in adapter.tensors().values()),
        total=total,
    )
