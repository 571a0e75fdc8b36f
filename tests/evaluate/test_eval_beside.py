"""`trimtab eval` on a real run: slices, fairness, calibration, robustness and its page."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trimtab.core.errors import InputError
from trimtab.evaluate.page import render
from trimtab.evaluate.run import Asked, evaluate
from trimtab.tune.config import parse
from trimtab.tune.run import tune

PETS = ("cat", "dog", "hamster", "parrot", "rabbit")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of two kinds, with columns that the task does not know."""
    path = tmp_path_factory.mktemp("data") / "sentences.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "pet", "size"])
        for pet in PETS:
            for n in range(30):
                home = f"My {pet} slept for {n} hours on the warm sofa", "home"
                bank = f"The {pet} bank raised interest by {n} points", "money"
                rows.writerow([*(home if n % 2 else bank), pet, n])
    return path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The folder of a short run, and its metrics. All but ten rows of each label are trained on."""
    out = str(tmp_path_factory.mktemp("run") / "run")
    fields = {"model": "minilm", "data": str(data), "out": out, "max_steps": 4, "batch_size": 8}
    pinned = {"dtype": "float32", "attention": "eager", "products": "exact", "replicas": 1}
    return out, tune(parse({**fields, **pinned, "target": "query"}, "a test"), quiet=True)


@pytest.fixture(scope="module")
def found(run: tuple[str, dict[str, Any]], data: Path) -> dict[str, Any]:
    """Of all rows, as if they were new."""
    asked = Asked(
        slices=("pet", "size", "label"),
        fairness=("pet",),
        positive="home",
        calibration=True,
        robustness=True,
    )
    return evaluate(run[0], str(data), "test", asked=asked)


def test_the_head_alone_is_kept_and_is_what_it_was(run: tuple[str, dict[str, Any]]) -> None:
    folder, metrics = run
    again = evaluate(folder, None, "test", asked=Asked(slices=("pet",)))
    assert again["head"] == metrics["baselines"]["head"]
    assert again["gain_over_head"] == metrics["gain_over"]["head"]
    assert again["value"] == metrics["test"]
    assert again["slices"][0]["rows"] == ["head", "adapted"]


def test_slices_come_to_the_whole(found: dict[str, Any]) -> None:
    assert [one["column"] for one in found["slices"]] == ["pet", "size", "label"]
    for one in found["slices"]:
        for row, whole in (("adapted", found["value"]), ("head", found["head"])):
            total = sum(group["n"] * group[row]["value"] for group in one["groups"])
            assert total / whole["n"] == pytest.approx(whole["value"])
    pets, sizes, labels = found["slices"]
    assert [(group["name"], group["n"]) for group in pets["groups"]] == [(p, 30) for p in PETS]
    assert sizes["groups"][0]["name"] == "0 to 7"
    assert {group["name"] for group in labels["groups"]} == {"home", "money"}


def test_calibration_and_robustness_are_of_both(found: dict[str, Any]) -> None:
    of = found["calibration"]
    assert sum(b["accuracy"]["n"] for b in of["reliability"]["adapted"]) == found["value"]["n"]
    assert set(of["temperature"]) == {"head", "adapted"}
    names = [change["name"] for change in found["robustness"]["changes"]]
    assert names[0] == "neighbouring key"
    same = next(c for c in found["robustness"]["changes"] if c["name"] == "upper case")
    assert same["adapted"]["cost"]["value"] == 0.0  # of a tokenizer that knows no case


def test_fairness_has_every_group_and_gap(found: dict[str, Any]) -> None:
    (of,) = found["fairness"]
    assert [group["name"] for group in of["groups"]] == list(PETS)
    assert set(of["gaps"]) == {
        *("selection_rate", "true_positive_rate", "false_positive_rate", "calibration"),
        "equalised_odds",
    }
    assert of["groups"][0]["few"] == ["true_positive_rate", "false_positive_rate"]  # 15 each
    assert of["gaps"]["true_positive_rate"]["change"]["value"] is None
    rate = of["groups"][0]["adapted"]["selection_rate"]
    assert rate["low"] <= rate["value"] <= rate["high"]


def test_the_page_tells_what_was_found(found: dict[str, Any]) -> None:
    strange = {**found, "data": "<script>alert(1)</script>"}
    page = render(strange, "runs/<b>")
    assert "<script>" not in page
    assert "runs/&lt;b&gt;" in page
    for words in (
        "accuracy by pet",
        "equalised odds",
        "Reliability",
        "dropped letter",
        "head only",
    ):
        assert words in page
    assert page.count("<svg") > 10


def test_on_the_command_line(run: tuple[str, Any], data: Path, tmp_path: Path) -> None:
    command = ["eval", run[0], "--data", str(data), "--slice", "pet", "--fairness", "pet"]
    more = ["--positive", "home", "--calibration", "--out", str(tmp_path / "page")]
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", *command, *more],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in ("accuracy by pet", "hamster", "gaps between the groups of pet", "temperature"):
        assert words in done.stdout
    written = json.loads((tmp_path / "page" / "eval.json").read_text())
    assert written["fairness"][0]["positive"] == "home"
    assert "hamster" in (tmp_path / "page" / "eval.html").read_text(encoding="utf8")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(slices=("pets",)), "has no column 'pets'; nearest: 'pet'"),
        (Asked(fairness=("pet",)), "needs --positive: which label is the good one, of 'home'"),
        (Asked(fairness=("pet",), positive="hone"), "no label of this run; nearest: 'home'"),
        (Asked(positive="home"), "--positive is of --fairness"),
        (Asked(stereotypes=True), "in language models"),
    ],
)
def test_what_cannot_be_asked(run: tuple[str, Any], asked: Asked, said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(run[0], None, "test", asked=asked)


def test_several_labels_have_no_calibration(tmp_path: Path) -> None:
    rows = [{"text": f"my cat slept {n} hours", "label": ["home", "pet"][: 1 + n % 2]}
            for n in range(60)]  # fmt: skip
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"model": "minilm", "data": str(data), "out": str(tmp_path / "run"), "max_steps": 1}
    pinned = {"dtype": "float32", "attention": "eager", "products": "exact", "replicas": 1}
    asked = {**fields, **pinned, "task_arg": {"kind": "several"}, "head_only": False}
    tune(parse(asked, "a test"), quiet=True)
    with pytest.raises(InputError, match="calibration is of tasks that give each example one"):
        evaluate(fields["out"], None, "test", asked=Asked(calibration=True))
