"""Changed training examples: what is drawn, what stays, and runs on them."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file

from trimtab.core.errors import InputError
from trimtab.data import media
from trimtab.tasks import lookup
from trimtab.tune import augmenting, trainer, training
from trimtab.tune.config import Config
from trimtab.tune.run import tune

Settings = Callable[..., Config]
RATE = 8000


def picture() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def recording() -> bytes:
    file = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(RATE) / 20) * np.linspace(0, 1, RATE)
    soundfile.write(file, wave.astype(np.float32), RATE, format="WAV")
    return file.getvalue()


CELLS = {
    "text": "The quick brown foxes jumped over seven lazy sleeping dogs in the garden.",
    "image": picture(),
    "audio": recording(),
}
each_change = pytest.mark.parametrize("name", augmenting.CHANGES)


@each_change
def test_a_change_follows_from_what_is_drawn(name: str) -> None:
    """Other draws give other cells, and nobody else's draws are touched."""
    change = augmenting.CHANGES[name]
    states = random.getstate(), torch.random.get_rng_state(), str(np.random.get_state())
    made = [change.of(CELLS[change.kind], random.Random(seed)) for seed in (*range(8), 0)]
    assert made[0] == made[-1]
    assert len({*made}) > 1 or name == "flip", "a picture has one mirror image"
    assert any(one != CELLS[change.kind] for one in made)
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[1])
    assert str(np.random.get_state()) == states[2]


@each_change
def test_a_changed_cell_is_one_of_its_kind(name: str) -> None:
    change = augmenting.CHANGES[name]
    given = CELLS[change.kind]
    made = change.of(given, random.Random(1))
    if change.kind == "text":
        assert set(made.lower()) <= set("abcdefghijklmnopqrstuvwxyz. ")
        assert 0.5 * len(given) < len(made) <= len(given)
    elif change.kind == "image":
        before, after = (np.asarray(media.image(one), dtype=float) for one in (given, made))
        assert before.shape == after.shape
        assert change.moves or abs(before - after).mean() < 80
    else:
        assert media.sampling_rate(made) == RATE
        assert 0.85 * RATE < len(media.audio(made, RATE)) < 1.15 * RATE
        assert np.abs(media.audio(made, RATE)).max() <= 1


WRONG = {
    "text-classification": ("pitch", "trains on no audio that could be changed; there are typos"),
    "image-classification": ("crops", "no such change; nearest: 'crop'"),
    "object-detection": ("flip", "places or an order.*; there are colour, blur, grain"),
    "image-segmentation": ("rotation", "places or an order"),
    "automatic-speech-recognition": ("shift", "places or an order.*; there are hiss, gain, pitch"),
    "sentence-similarity": ("typos", "trains on no text"),
    "tabular-classification": ("typos", "trains on no text.*there is none for it"),
}


@pytest.mark.parametrize("task", WRONG)
def test_what_does_not_fit_is_refused(task: str) -> None:
    name, told = WRONG[task]
    with pytest.raises(InputError, match=f"--augment {name}: .*{told}"):
        augmenting.refuse(lookup(task, {}), [name])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "head"}, "features that are computed once"),
        ({"stream": True}, "place in train"),
    ],
)
def test_options_that_would_have_no_effect_beside_it(
    changes: dict[str, Any], told: str, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"--augment.*{told}|{told}.*--augment"):
        tune(settings(tmp_path / "run", augment="typos", **changes), quiet=True)
    assert not (tmp_path / "run").exists()


def test_rows_keep_all_but_what_is_changed() -> None:
    task = lookup("text-classification", {})
    text = [f"number {i}: {CELLS['text']}" for i in range(200)]
    rows = datasets.Dataset.from_dict({"text": text, "label": [str(i) for i in range(200)]})
    seeds = [str(i) for i in range(200)]
    made = augmenting.altered(rows, task, ["case"], seeds)
    assert made["label"] == rows["label"]
    share = np.mean([a != b for a, b in zip(made["text"], text, strict=True)])
    assert abs(share - augmenting.SHARE) < 0.1
    again = augmenting.altered(rows.select([7]), task, ["case"], ["7"])
    assert again["text"][0] == made["text"][7], "whatever else is in the batch"


def test_a_run_meets_new_changes_in_each_epoch(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same rows with the same labels; the data that it is measured on stays."""
    met: list[list[str]] = []
    held: list[Any] = []
    made, judge = augmenting.Augmented.__getitems__, training.judge

    def followed(self: augmenting.Augmented, indices: Any) -> list[Any]:
        found = made(self, indices)
        for index, example in zip(indices, found, strict=True):
            plain = self.examples[index % len(self)]
            assert example["labels"] == plain["labels"]
            met.append([str(index), str(example["input_ids"])])
        return found

    def judged(session: Any, model: Any, encoded: Any, *others: Any) -> Any:
        held.append([str(example["input_ids"]) for example in encoded.examples])
        return judge(session, model, encoded, *others)

    monkeypatch.setattr(augmenting.Augmented, "__getitems__", followed)
    monkeypatch.setattr(training, "judge", judged)
    fields = {"augment": "typos,case,words", "epochs": 2, "max_steps": None, "workers": 0}
    metrics = tune(settings(tmp_path / "run", **fields), quiet=True)
    n = len(met) // 2
    first, second = dict(met[:n]), dict(met[n:])
    assert {int(index) % n for index in first} == {int(index) % n for index in second}
    assert sum(first[str(i)] != second[str(i + n)] for i in range(n)) > n / 2
    assert len({tuple(one) for one in held}) == 1
    assert any("changed anew in each epoch: typos, case, words" in one for one in metrics["notes"])


def test_weights_are_those_of_all_rows(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the batch that is encoded anew."""
    made = augmenting.Augmented.__getitems__
    seen: set[float] = set()

    def followed(self: augmenting.Augmented, indices: Any) -> list[Any]:
        found = made(self, indices)
        seen.update(float(example["weights"]) for example in found)
        return found

    monkeypatch.setattr(augmenting.Augmented, "__getitems__", followed)
    data = tmp_path / "uneven.csv"
    told = [("My cat slept", "home"), *[("The bank raised interest", "money")] * 3]
    rows = [f"{text} for {n} hours,{label}" for n in range(20) for text, label in told]
    data.write_text("text,label\n" + "\n".join(dict.fromkeys(rows)) + "\nIt purred,home\n")
    uneven = {"data": str(data), "task_arg": {"weights": "balanced"}, "augment": "case"}
    tune(settings(tmp_path / "run", **uneven, max_steps=4, workers=0), quiet=True)
    assert len(seen) <= 2


def test_a_run_that_goes_on_meets_the_same_changes(settings: Settings, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    fields = {"augment": "typos,words", "epochs": 2, "max_steps": None, "patience": None}
    config = settings(whole, **fields, save_every=9, eval_every=9)
    metrics = tune(config, quiet=True)
    shutil.copytree(whole, again)
    for name in ("adapter", f"checkpoints/checkpoint-{metrics['steps']}"):
        shutil.rmtree(again / name)
    for name in ("metrics.json", "report.html"):
        (again / name).unlink()
    assert tune(config.model_copy(update={"out": str(again)}), resume=True, quiet=True)
    last = f"checkpoints/checkpoint-{metrics['steps']}/{trainer.TENSORS}"
    one, other = load_file(whole / last), load_file(again / last)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_changed_text_is_not_cut_for_being_longer(settings: Settings, tmp_path: Path) -> None:
    short = {"max_length": None, "max_steps": 1}
    plain = settings(tmp_path / "plain", **short)
    changed = settings(tmp_path / "changed", augment="typos", **short)
    for config in (plain, changed):
        tune(config, quiet=True)
    assert changed.max_length is not None
    assert plain.max_length is not None
    assert changed.max_length == 2 * plain.max_length
