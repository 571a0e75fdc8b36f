"""Clips: the kinds of files that hold them, which frames are looked at, runs, what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_video import FRAMES, SIDE, animated, clips, moving, videomae

from trimtab.core.errors import InputError
from trimtab.data import Column, read_rows
from trimtab.data.clips import content, frames, length, sampled
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tune.run import tune

TASK = "video-classification"
VIDEO = Column("video", (), kind="video")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videomae(tmp_path_factory.mktemp("models") / "videomae")


def numbered(folder: Path, given: np.ndarray) -> Path:
    """The pictures 8.png, 9.png, 10.png, …: their names' order is another."""
    folder.mkdir(parents=True)
    for i, one in enumerate(given, start=8):
        Image.fromarray(one).save(folder / f"{i}.png")
    return folder


def arrays(path: Path, given: np.ndarray, **more: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez(path, frames=given, **more)
    else:
        np.save(path, given)
    return path


MADE: dict[str, Callable[[Path, np.ndarray], Path]] = {
    **dict.fromkeys(("a.webp", "a.png"), animated),
    **dict.fromkeys(("a.npy", "a.npz"), arrays),
    "a": numbered,
}


# Clips


@pytest.mark.parametrize("name", MADE)
def test_clips_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    given = moving("left", count=7)
    cell = str(MADE[name](tmp_path / name, given))
    assert length(cell) == 7
    found = [np.asarray(one) for one in frames(cell, 3)]
    np.testing.assert_array_equal(found, given[[1, 3, 5]])
    if Path(cell).is_file():
        data = Path(cell).read_bytes()
        assert length(data) == 7
        np.testing.assert_array_equal(np.asarray(frames(data, 7)[6]), given[6])
    assert content(cell) == content(str(MADE[name](tmp_path / f"again-{name}", given)))


def test_a_gif_is_read_in_its_own_colours(tmp_path: Path) -> None:
    cell = str(animated(tmp_path / "a.gif", moving("left", count=5)))
    found = np.asarray(frames(cell, 5)[2], dtype=int)
    assert np.abs(found - moving("left", count=5)[2]).mean() < 20
    assert found.max() > 200


def test_frames_come_from_the_middle_of_equal_parts() -> None:
    assert sampled(8, 4) == [1, 3, 5, 7]
    assert sampled(5, 5) == [0, 1, 2, 3, 4]
    assert sampled(100, 3) == [16, 50, 83]


def film(path: Path, given: np.ndarray) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = given.shape[2], given.shape[1], "yuv420p"
        for one in given:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_films(tmp_path: Path) -> None:
    given = np.repeat(np.arange(0, 250, 50, dtype=np.uint8), 16 * 16 * 3).reshape(5, 16, 16, 3)
    cell = str(film(tmp_path / "a.mp4", given))
    assert length(cell) == length(Path(cell).read_bytes()) == 5
    means = [np.asarray(one).mean() for one in frames(cell, 5)]
    np.testing.assert_allclose(means, given.mean((1, 2, 3)), atol=6)


def test_films_without_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    assert "pip install av" in refused(tmp_path / "a.mp4")


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_rows(path, (VIDEO,))
    return str(error.value)


def test_what_is_no_clip(tmp_path: Path) -> None:
    """Each file with its row, and why."""
    gif = animated(tmp_path / "cut.gif", moving("left"))
    gif.write_bytes(gif.read_bytes()[:900])
    animated(tmp_path / "single.gif", moving("left", count=1))
    np.save(tmp_path / "grey.npy", moving("left")[..., 0])
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    arrays(tmp_path / "two.npz", moving("left"), other=np.zeros(3))
    packed = arrays(tmp_path / "cut.npz", moving("left"))
    packed.write_bytes(packed.read_bytes()[:300])
    numbered(tmp_path / "sizes", moving("left"))
    Image.new("RGB", (5, 5)).save(tmp_path / "sizes" / "90.png")
    numbered(tmp_path / "names", moving("left"))
    Image.new("RGB", (20, 16)).save(tmp_path / "names" / "cover.png")
    (tmp_path / "empty").mkdir()
    reasons = {
        "cut.gif": "cannot be read as a clip",
        "single.gif": "has 1 frame: a clip has several",
        "grey.npy": "an array of 6 × 16 × 20 uint8, where (frames, height, width, 3)",
        "pickle.npy": "cannot be read as a clip",
        "two.npz": "2 arrays, where one is asked",
        "cut.npz": "cannot be read as a clip",
        "sizes": "frames of several sizes: 5 × 5 and 20 × 16 pixels",
        "names": "cover.png has no number",
        "empty": "it has no pictures",
        "absent.gif": "there is no file",
    }
    lines = [json.dumps({"video": name}) for name in reasons]
    for i, (line, reason) in enumerate(zip(lines, reasons.values(), strict=True), start=1):
        path = tmp_path / "one.jsonl"
        path.write_text("\n" * (i - 1) + line, "utf8")
        told = refused(path)
        assert f"one.jsonl, line {i}: " in told
        assert reason in told, told


# Runs


def test_frames_are_what_the_processor_gives(seeing: Path, tmp_path: Path) -> None:
    processor = lookup(TASK).processor(str(seeing))
    cell = str(arrays(tmp_path / "a.npy", moving("left")))
    expected = processor.processor([frames(cell, FRAMES)], return_tensors="pt")["pixel_values"]
    for _ in range(2):  # decoded, and kept
        found = processor.clips([cell])
        assert found.shape == (1, FRAMES, 3, SIDE, SIDE)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_run_its_evaluation_and_its_predictions(
    quick: Callable[..., Any], seeing: Path, tmp_path: Path
) -> None:
    data = clips(tmp_path / "clips")
    config = quick(task=TASK, model=seeing, data=data)
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "accuracy"
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    (tmp_path / "new").mkdir()
    for i in range(2):
        arrays(tmp_path / "new" / f"{i}.npy", moving("left", seed=i))
    told = predict(config.out, str(tmp_path / "new"))
    assert [Path(one["video"]).name for one in told] == ["0.npy", "1.npy"]
    assert {one["label"] for one in told} <= {"left", "right"}
    (alone,) = predict(config.out, str(data / "left" / "0.gif"))
    assert alone["label"] in ("left", "right")


def test_too_few_frames_for_the_model(
    quick: Callable[..., Any], seeing: Path, tmp_path: Path
) -> None:
    data = clips(tmp_path / "clips")
    animated(data / "right" / "3.gif", moving("right", count=3))
    with pytest.raises(InputError, match=r"right/3\.gif.* has 3 frames, .* looks at 4") as error:
        tune(quick(task=TASK, model=seeing, data=data), quiet=True)
    assert "clips, file 18" in str(error.value)


def test_a_model_of_pictures_looks_at_no_clips() -> None:
    with pytest.raises(InputError, match=r"minilm.* looks at no clips"):
        lookup(TASK).processor("minilm")


def test_bytes_in_a_table(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    np.save(buffer, moving("left"))
    rows = [{"video": {"bytes": buffer.getvalue(), "path": "a.npy"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    found, _ = read_rows(tmp_path / "x.parquet", (VIDEO,))
    assert length(found["video"][0]) == 6
