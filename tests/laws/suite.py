"""The suite: every registered method held to every law, each pair of method, law and architecture
once; and how a deliberately broken method must fail.
"""

from __future__ import annotations

import cases
import pytest

from trimtab.core.method import Method
from trimtab.testing import ARCHITECTURES, LAWS, Architecture, Law, NotApplicable, cover, hold
from trimtab.testing.check import row

GENERAL = [law for law in LAWS.values() if law.over is ARCHITECTURES]
COVER = cover(cases.METHODS, GENERAL, ARCHITECTURES)
OF_LAYERS = [
    (method, law, layer)
    for law in LAWS.values()
    if law.over is not ARCHITECTURES
    for layer in law.over
    for method in cases.METHODS
]


def held(number: int) -> pytest.MarkDecorator:
    """The suite's share of the laws of this number: arguments `method`, `law` and `where`."""
    triples = [triple for triple in [*COVER, *OF_LAYERS] if triple[1].number == number]
    ids = [f"{law.name}-{method.name}-{where.name}" for method, law, where in triples]
    return pytest.mark.parametrize(("method", "law", "where"), triples, ids=ids)


def check(method: Method, law: Law, where: Architecture) -> None:
    """The law holds, or the test is skipped with the reason why it has nothing to say."""
    try:
        hold(method, law, where, law.over if law.over is ARCHITECTURES else ())
    except NotApplicable as reason:
        pytest.skip(str(reason))


def breaks(method: Method, law: str, message: str = "", on: str = "bert") -> None:
    """A control: this method breaks this law, which the method that it spoils keeps."""
    where = next(one for one in LAWS[law].over if one.name == on)
    sound = type(method).__mro__[1]()  # type: ignore[misc]
    assert row(sound, LAWS[law], where).outcome == "holds"
    found = row(method, LAWS[law], where)
    assert found.outcome == "broken", found
    assert message in found.why
