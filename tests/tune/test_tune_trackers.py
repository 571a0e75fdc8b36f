"""`--report-to`: what a tracker writes stays within the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.tune.config import Config
from trimtab.tune.run import tune

Settings = Callable[..., Config]


def test_tensorboard_writes_into_the_run_s_checkpoints(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    tune(settings(Path("run"), max_steps=2, report_to="tensorboard"), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    events = list(tmp_path.rglob("events.out.tfevents.*"))
    assert events
    assert all(tmp_path / "run" / "checkpoints" in path.parents for path in events)
    assert any(b"eval/accuracy" in path.read_bytes() for path in events)


def test_without_a_tracker_there_are_no_events(finished: tuple[Path, object]) -> None:
    assert not list(finished[0].rglob("events.out.tfevents.*"))


def test_an_unknown_tracker_is_named_before_anything_is_done(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"--report-to wandbb: no such tracker.*tensorboard"):
        tune(settings(tmp_path / "run", report_to="wandbb"), quiet=True)
    assert not (tmp_path / "run").exists()
