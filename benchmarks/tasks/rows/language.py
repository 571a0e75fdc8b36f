"""Texts: labels, entities, answers, speeches, spelling."""

from __future__ import annotations

import json
from pathlib import Path

import prepare_qa
from arpabet import ipa
from row import Make, Row


def questions(shared: Path, out: Path) -> None:
    prepare_qa.write(shared / "e2e_nlg", out)


def spoken(shared: Path, out: Path) -> None:
    """Words of the CMU dictionary, and how they are spoken in the letters of bart-g2p-us."""
    for split in ("train", "validation", "test"):
        lines = (shared / "cmudict" / f"{split}.tsv").read_text("utf8").splitlines()[1:]
        pairs = (line.split("\t") for line in lines[: 5000 if split == "train" else 500])
        rows = [
            {"source": word, "target": "".join(map(ipa, phonemes.split()))}
            for word, phonemes in pairs
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{split}.jsonl").write_text(text, "utf8")


DATA: dict[str, Make] = {"questions": questions, "spoken": spoken}
ROWS = {
    "reviews": Row("text-classification", "minilm", "rotten_tomatoes"),
    "intents": Row("text-classification", "minilm", "banking77", steps=400),
    "entities": Row("token-classification", "minilm", "wnut17"),
    "questions": Row("question-answering", "minilm", "questions"),
    "similarity": Row(
        *("sentence-similarity", "minilm", "banking77"),
        options=("--task-arg", "kind=label", "--batch-size", "64"),
    ),
    "shakespeare": Row("text-generation", "stories260K", "tinyshakespeare"),
    "problems": Row(
        *("text-generation", "stories260K", "gsm8k"),
        options=("--task-arg", "form=answer", "--batch-size", "8"),
    ),
    "spelling": Row(
        *("text2text-generation", "bart-g2p-us", "spoken"),
        options=("--task-arg", "measure=character_error_rate"),
    ),
}
