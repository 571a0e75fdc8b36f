"""Going on from adapters that there are: one of them, the best of a library, several at once."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from trimtab.compare.measured import measure_run
from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, open_run
from trimtab.store.files import read_tensors
from trimtab.tasks.models import resolve
from trimtab.tune import library
from trimtab.tune.config import Config, parse
from trimtab.tune.folder import Run
from trimtab.tune.revising import revise
from trimtab.tune.run import tune
from trimtab.tune.sequence import forgetting, sequence

PINNED = {"dtype": "float32", "attention": "eager", "products": "exact", "replicas": 1}
Made = Callable[..., Config]


def sentences(path: Path, labels: dict[str, str], n: int = 40) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for label, text in labels.items():
            rows.writerows((text.format(k), label) for k in range(n))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    pets = {"home": "my cat slept {} hours", "money": "the bank lent {} coins"}
    days = {"rain": "it rained {} days", "snow": "snow fell {} nights", "sun": "{} hours of sun"}
    return {
        "pets": sentences(folder / "pets.csv", pets),
        "days": sentences(folder / "days.csv", days),
    }


@pytest.fixture(scope="module")
def made(data: dict[str, Path]) -> Made:
    """made(data's name, out, …) -> a run's configuration of two steps."""

    def made(name: str, out: Path, **changes: Any) -> Config:
        fields = {"model": "minilm", "data": str(data[name]), "out": str(out), "max_steps": 2}
        quick = {"batch_size": 8, "head_only": False, "target": "query", "rank": 4, "lr": 1e-3}
        return parse({**fields, **PINNED, **quick, **changes}, "a test")

    return made


@pytest.fixture(scope="module")
def runs(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of two finished runs, and a folder that is none."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("pets", "days"):
        tune(made(name, folder / name), quiet=True)
    (folder / "notes").mkdir()
    return folder


def began(config: Config) -> dict[str, torch.Tensor]:
    """The adapter of a run that learns next to nothing: where it began."""
    tune(config, quiet=True)
    return read_tensors(Path(config.out) / "adapter" / "adapter.safetensors")


NOTHING: dict[str, Any] = {"max_steps": 1, "lr": 1e-12}
LEFT: dict[str, Any] = {"target": None, "rank": None}  # a library says them


def test_a_run_begins_at_an_adapter_and_its_head(made: Made, runs: Path, tmp_path: Path) -> None:
    config = made("pets", tmp_path / "on", start_from=str(runs / "pets"), **NOTHING)
    own, there = began(config), read_tensors(runs / "pets" / "adapter" / "adapter.safetensors")
    assert own.keys() == there.keys()
    for name, tensor in there.items():
        torch.testing.assert_close(own[name], tensor, atol=1e-8, rtol=0)
    assert (
        evaluate(config.out, None, "test")["value"]
        == evaluate(str(runs / "pets"), None, "test")["value"]
    )


def test_other_labels_have_a_new_head(made: Made, runs: Path, tmp_path: Path) -> None:
    config = made("days", tmp_path / "on", start_from=str(runs / "pets" / "adapter"), **NOTHING)
    own, there = began(config), read_tensors(runs / "pets" / "adapter" / "adapter.safetensors")
    for name, tensor in there.items():
        if ".whole." in name:
            assert own[name].shape != tensor.shape
        else:
            torch.testing.assert_close(own[name], tensor, atol=1e-8, rtol=0)
    notes = json.loads((tmp_path / "on" / "metrics.json").read_text())["notes"]
    assert any("with a new head" in note for note in notes)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_of_hf_peft(made: Made, tmp_path: Path) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(resolve("minilm"), num_labels=2)
    asked = LoraConfig(r=4, lora_alpha=8, target_modules=["query"], init_lora_weights=False)
    get_peft_model(base, asked).save_pretrained(tmp_path / "peft")
    config = made("days", tmp_path / "on", start_from=str(tmp_path / "peft"), alpha=8, **NOTHING)
    own = began(config)
    saved = read_tensors(tmp_path / "peft" / "adapter_model.safetensors")
    at = "base_model.model.bert.encoder.layer.3.attention.self.query.lora_{}.weight"
    for half in "AB":
        name = f"bert.encoder.layer.3.attention.self.query.lora.{half}"
        torch.testing.assert_close(own[name], saved[at.format(half)], atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 8}, "its rank is 4, and this run's is 8 .* choose --rank 4"),
        ({"target": "value"}, "choose --target query"),
        ({"method": "ia3", "rank": None}, "choose --method lora"),
        ({"method": "full", "rank": None, "target": None}, "is of adapters, and --method full"),
        ({"start_from": "nowhere"}, "there is no such folder"),
    ],
)
def test_what_does_not_agree_is_said(
    made: Made, runs: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    fields = {"start_from": str(runs / "pets"), **changes}
    with pytest.raises(InputError, match=said):
        tune(made("pets", tmp_path / "on", **fields), quiet=True)
    assert not (tmp_path / "on").exists()


def test_a_library_is_ranked_and_the_base_is_left_as_it_was(made: Made, runs: Path) -> None:
    told = library.survey(made("days", Path("-")), str(runs))
    assert {one.name for one in told} == {"pets", "days", library.NONE}
    assert [one.score for one in told] == sorted((one.score for one in told), reverse=True)
    assert all(one.probe is not None and 0 <= one.probe <= 1 for one in told)
    again = library.survey(made("days", Path("-")), str(runs))
    assert again == told


def test_the_best_of_a_library_is_begun_at(made: Made, runs: Path, tmp_path: Path) -> None:
    config = made("days", tmp_path / "on", start_from=f"best:{runs}", **NOTHING)
    told = library.survey(made("days", Path("-")), str(runs))
    first = next(one for one in told if one.folder is not None)
    tune(config, quiet=True)
    assert config.start_from == str(first.folder)


def test_adapters_are_fused_and_stay_as_they_are(made: Made, runs: Path, tmp_path: Path) -> None:
    config = made("days", tmp_path / "on", from_library=str(runs), **LEFT)
    metrics = tune(config, quiet=True)
    assert metrics["method"] == "fusion"
    folder = tmp_path / "on" / "adapter"
    for name in ("pets", "days"):
        there = read_tensors(runs / name / "adapter" / "adapter.safetensors")
        for key, tensor in read_tensors(folder / name / "adapter.safetensors").items():
            assert torch.equal(tensor, there[key])
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    assert open_run(config.out).config.method_arg["over"] == ["days", "pets"]


def test_adapters_are_merged_and_trained_on(made: Made, runs: Path, tmp_path: Path) -> None:
    """W + the mean of both changes, at every site."""
    merge = {"from_library": str(runs), "combine": "merge", **LEFT}
    config = made("days", tmp_path / "on", **merge, **NOTHING)
    own = began(config)
    site = "bert.encoder.layer.2.attention.self.query.lora"
    parts = [read_tensors(runs / n / "adapter" / "adapter.safetensors") for n in ("pets", "days")]
    mean = sum(t[f"{site}.B"] @ t[f"{site}.A"] for t in parts) / 2
    merged = own[f"{site}.B"] @ own[f"{site}.A"]
    assert merged.norm() > 0
    cosine = torch.cosine_similarity(merged.flatten(), mean.flatten(), dim=0)
    assert cosine > 0.8  # of rank 4, where the mean has rank 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({**LEFT, "rank": 2}, "--rank has no part in --combine merge"),
        ({**LEFT, "target": "value"}, "--target has no part in --combine merge"),
        ({**LEFT, "start_from": "elsewhere"}, "are two ways to begin"),
    ],
)
def test_nothing_is_ignored_beside_a_library(
    made: Made, runs: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    config = made("days", tmp_path / "on", from_library=str(runs), combine="merge", **changes)
    with pytest.raises(InputError, match=said):
        tune(config, quiet=True)


def test_a_library_may_call_its_runs_as_runs_call_theirs(
    made: Made, runs: Path, tmp_path: Path
) -> None:
    """And what was fused is measured for a comparison, and refused where ranks are revised."""
    shutil.copytree(runs / "pets", tmp_path / "runs" / "default")
    shutil.copytree(runs / "days", tmp_path / "runs" / "merged")
    library = {"from_library": str(tmp_path / "runs"), **LEFT}
    tune(made("days", tmp_path / "merging", combine="merge", **library), quiet=True)
    fused = made("days", tmp_path / "fused", **library)
    tune(fused, quiet=True)
    measure_run(fused.out, None)
    assert json.loads((tmp_path / "fused" / "measured.json").read_text())["forgetting"]
    with pytest.raises(InputError, match="has trained fusion"):
        revise(fused.out)


def test_what_is_not_defined_is_no_forecast(
    made: Made, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(-2.0, None), (float("nan"), None), (-1.0, None)])
    monkeypatch.setattr(library, "_scores", lambda *_: next(scores))
    told = library.survey(made("days", Path("-")), str(runs))
    assert [one.name for one in told] == ["pets", library.NONE, "days"]


def test_a_sequence_that_was_stopped_goes_on(data: dict[str, Path], tmp_path: Path) -> None:
    fields = {"model": "minilm", "max_steps": 2, "batch_size": 8, "head_only": False, **PINNED}
    both = [str(data["pets"]), str(data["days"])]
    first = parse({**fields, "data": both[0], "out": str(tmp_path / "1-pets")}, "a test")
    Run(tmp_path / "1-pets").create(first)  # killed before it came to anything
    assert sequence(both, str(tmp_path), fields)["forgetting"] == [0.0]
    for key, value, told in (("max_steps", 3, "max_steps 2,"), ("rank", 4, "rank None,")):
        with pytest.raises(InputError, match=f"{told} and this sequence has {value}"):
            sequence(both, str(tmp_path), {**fields, key: value})
    with pytest.raises(InputError, match="data of its own for each task"):
        sequence(both, str(tmp_path), {**fields, "data": both[0]})


def test_a_sequence_forgets_nothing(data: dict[str, Path], tmp_path: Path) -> None:
    fields = {"model": "minilm", "max_steps": 3, "batch_size": 8, "head_only": False, **PINNED}
    found = sequence([str(data["pets"]), str(data["days"])], str(tmp_path), fields)
    first, second = found["matrix"]
    assert first[0] == second[0]
    assert first[1] is None
    assert found["same_outputs"]
    assert found["forgetting"] == [0.0]
    assert json.loads((tmp_path / "sequence.json").read_text()) == found


def test_forgetting_by_hand() -> None:
    matrix = [[0.9, None, None], [0.6, 0.8, None], [0.7, 0.5, 1.0]]
    assert forgetting(matrix) == pytest.approx([0.2, 0.3])
    assert forgetting([[2.0, None], [5.0, 1.0]], higher=False) == pytest.approx([3.0])  # errors


def test_on_the_command_line(data: dict[str, Path], runs: Path) -> None:
    command = ["transfer", str(runs), "--model", "minilm", "--data", str(data["days"])]
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "predicted" in done.stdout
    assert "pets" in done.stdout


def test_a_sequence_takes_what_a_run_takes(data: dict[str, Path], tmp_path: Path) -> None:
    """Flags before a file's fields."""
    file = tmp_path / "run.yaml"
    file.write_text("method: lora\nrank: 2\nlr: 0.005\nmax_steps: 2\nhead_only: false\n")
    asked = ["--config", str(file), "--rank", "4", "--column", "text=text", "--json"]
    out = tmp_path / "runs"
    command = ["sequence", str(data["pets"]), str(data["days"]), "--out", str(out), *asked]
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for folder in json.loads(done.stdout)["runs"]:
        config = Run(Path(folder)).config()
        assert (config.rank, config.lr, config.columns) == (4, 0.005, {"text": "text"})
