"""Texts: labels, entities, answers, speeches, spelling."""

from __future__ import annotations

from pathlib import Path

import prepare_qa
from row import Make, Row


def questions(shared: Path, out: Path) -> None:
    prepare_qa.write(shared / "e2e_nlg", out)


DATA: dict[str, Make] = {"questions": questions}
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
        *("text2text-generation", "bart-g2p-us", "cmudict"),
        options=("--task-arg", "measure=character_error_rate"),
    ),
}
