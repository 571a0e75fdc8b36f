"""Law 1: at the start the adapted model equals the base, or the paper says why not."""

from __future__ import annotations

from trimtab.core.method import Method
from trimtab.testing.architectures import Architecture
from trimtab.testing.trial import NotApplicable, Trial, assert_near


def starts_at_the_base(method: Method, architecture: Architecture) -> None:
    """Fresh, an adapter changes no output."""
    if reason := getattr(method, "starts_at_base", None):
        raise NotApplicable(reason)
    trial = Trial(method, architecture)
    before = trial.outputs()
    trial.attach()
    assert_near(trial.outputs(), before, "the outputs at the start, against the base's", 2e-6)
