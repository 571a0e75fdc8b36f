"""Law 4: saved and loaded the outputs are identical; what does not fit is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import suite
from broken import Forgetful

import trimtab
from trimtab.core.method import Method
from trimtab.store import fingerprint, verbs


@suite.held(4)
def test_holds(method: Method, law: Any, where: Any) -> None:
    suite.check(method, law, where)


def test_control_of_files() -> None:
    """Without a name of its own its files are read as another method's."""
    suite.breaks(Forgetful(), "files", "the loaded adapter")


@pytest.mark.parametrize("name", ["bert", "clip"])
def test_controls_of_misfits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not look closely."""
    law = suite.LAWS["misfits"]
    where = next(one for one in law.over if one.name == name)
    assert suite.row(trimtab.LoRA(), law, where).outcome == "holds"
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "compare", lambda *_: None)
        assert "(another base)" in suite.row(trimtab.LoRA(), law, where).why
    checked = verbs._check_keys
    with monkeypatch.context() as patch:
        patch.setattr(
            verbs,
            "_check_keys",
            lambda wanted, found, adapter: checked(wanted, {k: found[k] for k in wanted}, adapter),
        )
        assert suite.row(trimtab.LoRA(), law, where).outcome == "broken"
