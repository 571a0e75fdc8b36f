"""How the tests of kernels know that one ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Follow = Callable[[Any, str], list[Any]]


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Follow:
    """`follow(owner, name)`: a list that grows with all that this function gives but None."""

    def follow(owner: Any, name: str) -> list[Any]:
        seen: list[Any] = []
        function = getattr(owner, name)

        def followed(*args: Any) -> Any:
            found = function(*args)
            seen.extend([] if found is None else [found])
            return found

        monkeypatch.setattr(owner, name, followed)
        return seen

    return follow
