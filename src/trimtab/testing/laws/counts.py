"""Law 10: an adapter trains as many parameters as its paper's formula says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch

from trimtab.core.counts import summary
from trimtab.core.method import Method, Selection
from trimtab.core.site import Site
from trimtab.core.walk import shapes
from trimtab.match import sites
from trimtab.testing.architectures import Architecture
from trimtab.testing.trial import (
    NotApplicable,
    Trial,
    ensure,
)

Formula = Callable[[Sequence[Site]], int]
"""From the sites that an adapter acts at to the number of parameters that it trains."""


def counts(method: Method, architecture: Architecture, parameters: Formula | None = None) -> None:
    """What is reported is what trains, over a base of any precision, and is the formula's."""
    reports = []
    for dtype in (torch.float32, torch.bfloat16):
        trial = Trial(method, architecture, dtype)
        known = {site.name: site for site in sites(trial.model)}
        whole = architecture.model()
        packed = shapes(whole)
        total = sum(prod(packed.get(n, tuple(p.shape))) for n, p in whole.named_parameters())
        adapter = trial.attach()
        unique = {id(p): p.numel() for p in adapter.parameters()}
        report = summary(trial.model, "default")
        ensure(report.trainable == sum(unique.values()), "reported is not what trains")
        common = sum(p.numel() for held in adapter.shared.values() for p in held.parameters())
        sited = sum(report.sites.values())
        ensure(sited + common == report.trainable, "the sites do not sum to the whole")
        ensure(report.total == total, f"the base has {total} parameters, not {report.total}")
        held = sum(t.numel() * t.element_size() for t in adapter.tensors().values())
        ensure(report.bytes == held, "reported bytes are not those of the tensors")
        reports.append(report.trainable)
        if parameters is not None and not isinstance(method, Selection):
            wanted = parameters([known[name] for name in dict(adapter.deltas())])
            ensure(
                report.trainable == wanted,
                f"{report.trainable} parameters train; the formula says {wanted}",
            )
    ensure(len(set(reports)) == 1, f"a bf16 base changes the count: {reports}")
    if not reports[0]:
        raise NotApplicable("it trains no parameter")
