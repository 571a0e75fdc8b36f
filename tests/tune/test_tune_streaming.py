"""A run on a stream: all of the file is trained on, in pieces, and a run that goes on meets them
where it left."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from trimtab.core.errors import InputError
from trimtab.data import streaming
from trimtab.tune.config import Config
from trimtab.tune.run import tune
from trimtab.tune.session import open_session, read_stream
from trimtab.tune.streaming import Stream

Settings = Callable[..., Config]


@pytest.fixture
def parted(sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sentences as a folder of splits, train in six pieces."""
    header, *rows = sentences.read_text("utf8").splitlines()
    for split, part in (("train", rows[10:]), ("validation", rows[:10:2]), ("test", rows[1:10:2])):
        part = [*part, rows[0], rows[15]] if split != "train" else part
        (tmp_path / f"{split}.csv").write_text("\n".join([header, *part, ""]), "utf8")
    monkeypatch.setattr(
        streaming.load_stream,
        "__kwdefaults__",
        {**(streaming.load_stream.__kwdefaults__ or {}), "piece": 900},
    )
    return tmp_path


def test_an_epoch_has_every_row_once(settings: Settings, parted: Path, tmp_path: Path) -> None:
    config = settings(tmp_path / "run", data=str(parted), stream=True)
    splits, pieces = read_stream(config)
    session = open_session(config, ["home", "money"])
    stream = Stream(pieces, session.encode, 8, seed=0)
    parts = list(pieces())
    assert len(parts) > 3
    assert len(splits.train) == len(parts[0])
    every = sorted(example["input_ids"] for example in stream.epoch(0))
    texts = [text for part in parts for text in part.columns["text"]]
    assert every == sorted(session.processor(texts)["input_ids"])
    first = [example["input_ids"] for example in stream.epoch(0)]
    second = [example["input_ids"] for example in stream.epoch(1)]
    assert first != second
    assert sorted(first) == sorted(second)
    endless = [one["input_ids"] for one in itertools.islice(stream, 2 * len(first))]
    assert endless == first + second


@pytest.mark.parametrize("batch", [8, 32], ids=["in the first epoch", "in the second"])
def test_a_run_that_goes_on_is_one_that_never_stopped(
    settings: Settings, parted: Path, tmp_path: Path, batch: int
) -> None:
    changes: dict[str, Any] = {"data": str(parted), "stream": True, "max_steps": 6}
    changes |= {"batch_size": batch, "eval_every": 6}  # the adapter that is kept is the last
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = tune(settings(whole, **changes), quiet=True)
    shutil.copytree(whole, stopped)
    for name in ("metrics.json", "report.html", "adapter", "checkpoints/checkpoint-6"):
        path = stopped / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = tune(settings(stopped), resume=True, quiet=True)
    assert found["test"] == expected["test"]
    one, other = (
        load_file(next((out / "adapter").glob("*.safetensors"))) for out in (whole, stopped)
    )
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    assert any("streamed" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "--stream needs --max-steps"),
        ({"clean": ["empty"]}, "--clean looks at all of train"),
        ({"method": "head", "target": None}, "--method head trains on features"),
    ],
)
def test_what_a_stream_cannot(
    settings: Settings, parted: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tune(settings(tmp_path / "run", data=str(parted), stream=True, **changes), quiet=True)
