"""A run that is killed, and goes on as if it had not been: the same adapter, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trimtab.core.errors import InputError, TrimtabError
from trimtab.store import files
from trimtab.tune import trainer
from trimtab.tune.config import Config
from trimtab.tune.run import tune

Finished = tuple[Path, dict[str, Any]]
Settings = Callable[..., Config]

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trimtab", *arguments]


def flags(config: Config) -> list[str]:
    given = config.model_dump(exclude_unset=True)
    given["target"] = ",".join(given["target"])
    pairs = ((f"--{key.replace('_', '-')}", str(value)) for key, value in given.items())
    return [part for pair in pairs for part in pair]


def kill_when(reached: Callable[[], bool], config: Config) -> bool:
    """Start the run, and kill it with SIGKILL at the moment that `reached` tells; False where it
    came to its end before, as it may on a busy machine."""
    process = subprocess.Popen(
        command("tune", *flags(config)),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with process:
        until = time.monotonic() + 120
        while not reached() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.stderr is not None
        assert process.wait() in {0, -signal.SIGKILL}, process.stderr.read().decode()
        return process.returncode != 0


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("adapter/adapter.safetensors", "checkpoints/best/adapter.safetensors"):
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    for key in ("test", "validation", "baselines", "best_step", "base_fingerprint", "trainable"):
        assert metrics[0][key] == metrics[1][key]
    logs = [(run / "log.jsonl").read_text().splitlines() for run in (one, other)]
    losses = [[(e["step"], e["loss"]) for e in map(json.loads, log) if "loss" in e] for log in logs]
    assert losses[0] == losses[1]


def has_begun(out: Path) -> bool:
    return (out / "log.jsonl").exists() and bool((out / "log.jsonl").read_text())


def saved(out: Path, step: int) -> bool:
    return (out / "checkpoints" / f"checkpoint-{step}" / trainer.COMPLETE).exists()


@pytest.mark.parametrize(
    ("moment", "first", "last"),
    [
        (has_begun, None, 2),
        (lambda out: saved(out, 4), 4, 8),
        (lambda out: saved(out, 8), 8, None),
    ],
    ids=["before the first checkpoint", "between checkpoints", "after the last checkpoint"],
)
def test_killed_and_resumed(
    moment: Callable[[Path], bool],
    first: int | None,
    last: int | None,
    finished: Finished,
    settings: Settings,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    for _ in range(3):
        killed = kill_when(lambda: moment(out), settings(out))
        late = (out / "metrics.json").exists() or (last is not None and saved(out, last))
        if killed and not late:
            break
        shutil.rmtree(out)
    assert moment(out), "three times the moment was missed"
    assert first is None or saved(out, first)
    with pytest.raises(InputError, match=r"not finished: go on with trimtab tune --resume"):
        opened(out)
    resumed = subprocess.run(
        command("tune", "--resume", "--out", str(out), "--json"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout) == json.loads((out / "metrics.json").read_text())
    assert_same_run(out, finished[0])


def opened(out: Path) -> None:
    from trimtab.evaluate.run import open_run

    open_run(str(out))


def interrupted(finished: Finished, out: Path) -> Path:
    """A copy of the finished run as it was after its last checkpoint."""
    shutil.copytree(finished[0], out)
    shutil.rmtree(out / "adapter")
    for name in ("metrics.json", "report.html"):
        (out / name).unlink()
    return out


@pytest.mark.parametrize("checkpoints", [True, False])
def test_it_tells_where_it_goes_on(
    checkpoints: bool,
    finished: Finished,
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = interrupted(finished, tmp_path / "run")
    *_, before, last = sorted(int(c.name[11:]) for c in out.glob("checkpoints/checkpoint-*"))
    shutil.rmtree(out / "checkpoints" / f"checkpoint-{last}")
    if not checkpoints:
        shutil.rmtree(out / "checkpoints")
        (out / "log.jsonl").unlink()
    tune(settings(out), resume=True)
    told = (
        f"going on from step {before}" if checkpoints else "no checkpoint yet: from the beginning"
    )
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["marker", "tensors"])
def test_a_half_written_checkpoint_does_not_count(
    damage: str, finished: Finished, settings: Settings, tmp_path: Path
) -> None:
    """Killed while writing: there is no marker yet, whatever else there is."""
    out = interrupted(finished, tmp_path / "run")
    half = out / "checkpoints" / "checkpoint-8"
    (half / trainer.COMPLETE).unlink()
    if damage == "tensors":
        path = half / trainer.TENSORS
        path.write_bytes(path.read_bytes()[:1000])
    tune(settings(out), resume=True, quiet=True)
    assert_same_run(out, finished[0])


def test_a_finished_run_resumes_to_itself(
    finished: Finished, settings: Settings, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished[0], tmp_path / "run"))
    assert tune(settings(out), resume=True, quiet=True) == finished[1]  # nothing runs again
    (out / "report.html").unlink()  # killed before its end
    tune(settings(out), resume=True, quiet=True)
    assert (out / "report.html").exists()
    assert_same_run(out, finished[0])


def test_an_early_stop_is_still_one_after_resuming(settings: Settings, tmp_path: Path) -> None:
    """Killed after the evaluation that was to be the last: no step more is taken."""
    out = tmp_path / "run"
    changes = {"eval_every": 1, "save_every": 1, "patience": 1, "seed": 3}
    before = tune(settings(out, **changes), quiet=True)
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert max(steps) < 8
    after = tune(settings(out, **changes), resume=True, quiet=True)
    again = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert max(again) == max(steps)
    assert after["best_step"] == before["best_step"]


class FullDisk:
    """`os.replace` and `torch.save` on a disk that is full once a file of this path is written."""

    def __init__(self, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.part, self.replace, self.save = part, os.replace, torch.save
        monkeypatch.setattr(files.os, "replace", self.replacing)
        monkeypatch.setattr(torch, "save", self.saving)

    def replacing(self, source: Any, target: Any) -> None:
        if self.part in str(target):
            raise OSError(28, "No space left on device", str(target))
        self.replace(source, target)

    def saving(self, value: Any, target: Any, *rest: Any, **options: Any) -> None:
        if self.part in str(target):
            raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")
        self.save(value, target, *rest, **options)


@pytest.mark.parametrize(
    "part",
    [f"checkpoint-4/{name}" for name in (trainer.TENSORS, "optimizer.pt", trainer.MEMORY)],
)
def test_a_checkpoint_that_cannot_be_written(
    part: str, finished: Finished, settings: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        FullDisk(part, patched)
        expected = r"checkpoint at step 4 cannot be written.*--resume; the checkpoint before it is"
        with pytest.raises(TrimtabError, match=expected) as raised:
            tune(settings(out), quiet=True)
    assert raised.value.exit_code == 1
    assert saved(out, 2)
    assert not (out / "checkpoints" / "checkpoint-4").exists()
    if part.endswith(trainer.MEMORY):
        tune(settings(out), resume=True, quiet=True)
        assert_same_run(out, finished[0])


@pytest.mark.parametrize("part", ["best/", "log.jsonl", "adapter/adapter.json", "metrics.json"])
def test_any_other_write_that_fails(
    part: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part == "log.jsonl":
        monkeypatch.setattr(Path, "open", no_room(Path.open, part))
    else:
        FullDisk(part, monkeypatch)
    with pytest.raises(TrimtabError, match=f"cannot write .*{part}.*No space left"):
        tune(settings(tmp_path / "run", max_steps=2, save_every=1, eval_every=1), quiet=True)
    assert not list((tmp_path / "run").rglob("*.partial"))


def no_room(really: Callable[..., Any], part: str) -> Callable[..., Any]:
    def opening(path: Path, *rest: Any, **options: Any) -> Any:
        if part in str(path):
            raise OSError(28, "No space left on device", str(path))
        return really(path, *rest, **options)

    return opening
