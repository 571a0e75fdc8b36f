"""Shown examples: prompts of a language model, neighbours of an encoder, and what is neither."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from trimtab.compare import measured, prompted
from trimtab.evaluate import prompting
from trimtab.evaluate.drawn import drawn
from trimtab.tasks import lookup
from trimtab.tune import answers as recorded
from trimtab.tune.config import parse
from trimtab.tune.run import tune

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))

from places import shared


def write_texts(path: Path, more: str = "") -> None:
    rows = [
        (f"{who} {did} the {what} {more}.", label)
        for label, did in (("good", "loved"), ("bad", "lost"))
        for who in ("Tim", "Lily", "Sam", "Anna", "Max")
        for what in ("ball", "toy", "cat", "kite")
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def config(model: str, data: Path, out: Path, **own: Any) -> dict[str, Any]:
    asked = {"model": model, "data": str(data), "out": str(out), "method": "head", **own}
    return parse({"dtype": "float32", **asked}, "test").model_dump()


def test_a_language_model_is_prompted(tmp_path: Path) -> None:
    """With labels scored behind each text, in several orders of the same examples."""
    model, data = str(shared("models", "stories260K")), tmp_path / "rows.csv"
    write_texts(data)
    out = tmp_path / "few"
    out.mkdir()
    prompted.few_shot(str(out), config(model, data, out), shots=4, orders=3)
    found = json.loads((out / "metrics.json").read_text())
    assert (found["applicable"], found["kind"], found["shots"]) == (True, "prompting", 4)
    assert len(found["by_order"]) == 3
    assert found["test"]["value"] in found["by_order"]
    kept = recorded.read(out)
    assert kept is not None
    assert set(kept[0]["adapted"]) <= {"good", "bad"}
    shorter = tmp_path / "fewer"
    shorter.mkdir()
    prompted.few_shot(str(shorter), config(model, data, shorter), shots=1, orders=3)
    less = json.loads((shorter / "metrics.json").read_text())
    assert less["tokens"] < found["tokens"]  # each prediction pays for its examples


def test_rows_are_drawn_from_all_of_a_file_in_order_of_its_labels() -> None:
    rows = datasets.Dataset.from_dict({"label": ["bad"] * 500 + ["good"] * 500})
    some = drawn(rows, 200, 0)
    assert len(some) == 200
    assert 60 < some["label"][:].count("good") < 140
    assert drawn(rows, 1000, 0) is rows


def test_an_order_is_chosen_on_rows_of_every_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = str(shared("models", "stories260K")), tmp_path / "rows"
    data.mkdir()
    for split in ("train", "validation", "test"):
        write_texts(data / f"{split}.csv", split)  # the good ones come first
    out = tmp_path / "few"
    out.mkdir()
    monkeypatch.setattr(prompted, "_TRIED", 20)
    seen: list[set[str]] = []
    told = prompted._measured

    def measured(session: Any, validation: Any, *rest: Any) -> dict[str, Any]:
        seen.append(set(validation["label"]))
        return told(session, validation, *rest)

    monkeypatch.setattr(prompted, "_measured", measured)
    prompted.few_shot(str(out), config(model, data, out), shots=1, orders=1)
    assert seen == [{"good", "bad"}]
    assert json.loads((out / "metrics.json").read_text())["validation"]["n"] == 20


def test_answers_are_generated_behind_worked_examples(tmp_path: Path) -> None:
    model, data = str(shared("models", "stories260K")), tmp_path / "rows.jsonl"
    lines = [{"prompt": f"Tim has {n} balls", "answer": f"He has {n} ."} for n in range(40)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {"form": "answer", "generate": True, "max_new_tokens": 4}
    out = tmp_path / "few"
    out.mkdir()
    asked = config(model, data, out, task="text-generation", task_arg=task)
    prompted.few_shot(str(out), asked, shots=2, orders=2)
    found = json.loads((out / "metrics.json").read_text())
    assert (found["metric"], found["kind"], found["shots"]) == ("exact_match", "prompting", 2)
    plain = lookup("text-generation", task)
    shown = prompting.shown_before(plain, {key: [line[key] for line in lines] for key in lines[0]},
                                   [3, 1])  # fmt: skip
    assert shown.template.startswith("Tim has 3 balls\nHe has 3 .\n\nTim has 1 balls\n")
    assert shown.template.endswith("{prompt}\n")


def test_words_are_tagged_by_their_neighbours(tmp_path: Path) -> None:
    names = ("Anna", "Boris", "Clara", "David", "Emma", "Felix")
    text = "\n\n".join(
        f"{name} B-person\nlives O\nin O\n{city} B-place" for name in names
        for city in ("Paris", "Rome", "London", "Madrid")
    )  # fmt: skip
    (tmp_path / "rows.conll").write_text(text + "\n")
    out = tmp_path / "few"
    out.mkdir()
    asked = config("minilm", tmp_path / "rows.conll", out, task="token-classification")
    prompted.few_shot(str(out), asked, shots=4, orders=2)
    found = json.loads((out / "metrics.json").read_text())
    assert found["kind"] == "neighbours"
    assert found["test"]["value"] > 0.9
    prompted.score(str(out), asked)
    assert json.loads((out / "score.json").read_text())["logme"] is not None


@pytest.mark.parametrize(
    ("task", "options", "why"),
    [
        ("text-classification", {"kind": "number"}, "one label"),
        ("text-classification", {}, "no causal language model"),
        ("text-generation", {}, "form=text has no answers"),
        ("object-detection", {}, "not asked for in words"),
    ],
)
def test_where_nothing_can_be_asked(task: str, options: dict[str, Any], why: str) -> None:
    assert why in str(prompting.refusal(lookup(task, options), "minilm"))


def test_what_a_language_model_forgets_is_its_perplexity(tmp_path: Path) -> None:
    """Trained on one sentence over and over it predicts others worse; off, it is itself again."""
    model, data = str(shared("models", "stories260K")), tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": "zz zz zz zz zz"}) + "\n" for _ in range(40)))
    asked = {"model": model, "data": str(data), "out": str(tmp_path / "run"), "dtype": "float32",
             "task": "text-generation", "max_steps": 20, "lr": 0.05, "eval_every": 20}  # fmt: skip
    tune(parse(asked, "test"), quiet=True)
    measured.measure(str(tmp_path), [str(tmp_path / "run")], None)
    found = json.loads((tmp_path / "run" / "measured.json").read_text())["forgetting"]
    assert found["measure"] == "nats per token of held-out text"
    assert found["without"] == 0.0
    assert found["adapted"] > 0.1
    assert found["perplexity"]["adapted"] > found["perplexity"]["base"]
