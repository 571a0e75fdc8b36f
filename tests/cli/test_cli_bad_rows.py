"""A row of each kind that cannot be used ends `tune` in an error that names file and row, before
any model is opened."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

Row = dict[str, Any]
GOOD = 24


def picture(folder: Path, name: str, size: tuple[int, int] = (12, 10)) -> str:
    noise = np.random.default_rng(len(name)).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / name)
    return name


def sound(folder: Path, name: str, loud: float = 0.5, rate: int = 8000) -> str:
    soundfile.write(folder / name, loud * np.sin(np.arange(2000) / 9), rate)
    return name


def pictures(folder: Path) -> tuple[Row, Row]:
    picture(folder, "good.png")
    (folder / "bad.png").write_bytes((folder / "good.png").read_bytes()[:80])
    return {"image": "good.png", "label": "a"}, {"image": "bad.png", "label": "b"}


def boxes(folder: Path) -> tuple[Row, Row]:
    picture(folder, "good.png")
    good = {"boxes": [[1, 1, 4, 4]], "labels": ["cell"]}
    return (
        {"image": "good.png", "boxes": good},
        {"image": "good.png", "boxes": {**good, "boxes": [[8, 1, 9, 4]]}},
    )


def masks(folder: Path) -> tuple[Row, Row]:
    picture(folder, "good.png")
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(folder / "mask.png")
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(folder / "small.png")
    return {"image": "good.png", "mask": "mask.png"}, {"image": "good.png", "mask": "small.png"}


def silence(folder: Path) -> tuple[Row, Row]:
    sound(folder, "good.wav")
    sound(folder, "bad.wav", loud=0.0)
    return {"audio": "good.wav", "label": "a"}, {"audio": "bad.wav", "label": "b"}


def rates(folder: Path) -> tuple[Row, Row]:
    sound(folder, "good.wav")
    sound(folder, "bad.wav", rate=12)
    return {"audio": "good.wav", "label": "a"}, {"audio": "bad.wav", "label": "b"}


def texts(folder: Path) -> tuple[Row, Row]:
    return {"text": "good", "label": "a"}, {"text": "bad \udcff", "label": "b"}


def numbers(folder: Path) -> tuple[Row, Row]:
    return {"text": "good", "label": 1.5}, {"text": "bad", "label": "many"}


def tags(folder: Path) -> tuple[Row, Row]:
    good = {"tokens": ["Ada", "wrote"], "tags": ["B-person", "O"]}
    return good, {**good, "tags": ["O"]}


def answers(folder: Path) -> tuple[Row, Row]:
    good = {"question": "Who?", "context": "Ada wrote", "answer": "Ada"}
    return good, {**good, "answer": "Babbage"}


CASES: dict[str, tuple[Callable[[Path], tuple[Row, Row]], str, str]] = {
    "a broken image": (pictures, "image-classification", "'bad.png' .*(broken|truncated|cut)"),
    "a box outside its image": (boxes, "object-detection", r"box 1, .* reaches beyond its image"),
    "a mask of another size": (masks, "image-segmentation", "mask has 6 × 5 pixels, its image 12"),
    "a silent recording": (silence, "audio-classification", "'bad.wav' is silent"),
    "a rate that is none": (rates, "audio-classification", "claims 12 samples a second"),
    "not UTF-8": (texts, "text-classification", "not UTF-8"),
    "a word for a number": (numbers, "text-classification", "label is 'many', not a finite number"),
    "a tag too few": (tags, "token-classification", "1 tags for 2 words"),
    "an answer from elsewhere": (answers, "question-answering", "'Babbage' is not in its context"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_error_names_file_and_row(case: str, cli: Callable[..., Any], tmp_path: Path) -> None:
    make, task, expected = CASES[case]
    good, bad = make(tmp_path)
    other = {**good, "label": "b"} if good.get("label") == "a" else good
    rows = [*([good, other] * (GOOD // 2)), bad]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file = tmp_path / "rows.jsonl"
    file.write_bytes("".join(lines).encode(errors="surrogateescape"))
    kind = ["--task-arg", "kind=number"] if case == "a word for a number" else []
    out = str(tmp_path / "run")
    flags = ("--model", "minilm", "--data", str(file), "--task", task, *kind, "--out", out)
    found = cli("tune", *flags)
    assert found.code == 2
    assert "Traceback" not in found.err
    told = " ".join(found.err.split())
    assert re.search(rf"rows\.jsonl, line {GOOD + 1}: .*{expected}", told), told
    assert not Path(out).exists()


def test_a_label_that_training_never_saw(cli: Callable[..., Any], tmp_path: Path) -> None:
    for split, labels in (("train", "ab" * 9), ("validation", "ab"), ("test", "abc")):
        lines = ["text,label", *(f"words {i},{label}" for i, label in enumerate(labels)), ""]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines), "utf8")
    found = cli(
        *("tune", "--model", "minilm", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    )
    assert found.code == 2
    assert "test.csv, line 4: label 'c' does not occur in" in " ".join(found.err.split())
