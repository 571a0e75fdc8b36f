"""What a rank at a site is worth, by several equations: one file each."""

from __future__ import annotations

from trimtab.core.errors import InputError, nearest
from trimtab.plan.estimators.estimator import Estimator as Estimator
from trimtab.plan.estimators.eva import Eva
from trimtab.plan.estimators.even import Even
from trimtab.plan.estimators.fisher import Fisher
from trimtab.plan.estimators.gradient import Gradient
from trimtab.plan.estimators.held_out import HeldOut
from trimtab.plan.estimators.importance import Importance
from trimtab.plan.estimators.nuclear import Nuclear

ESTIMATORS: dict[str, type[Estimator]] = {
    one.name: one for one in (Gradient, Nuclear, HeldOut, Importance, Fisher, Eva, Even)
}


def estimator(name: str) -> type[Estimator]:
    """The estimator of this name, or an error with the nearest names."""
    if name not in ESTIMATORS:
        raise InputError(f"no estimator is called {name!r}; {nearest(name, ESTIMATORS)}")
    return ESTIMATORS[name]
