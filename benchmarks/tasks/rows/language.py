"""Texts: labels, entities, answers, speeches, spelling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import prepare
import prepare_qa
from arpabet import ipa
from row import Make, Row

_LONGEST = 600  # letters of an instruction with its answer


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
        prepare.write_json_lines(out / f"{split}.jsonl", rows)


def instructions(shared: Path, out: Path) -> None:
    """Self-Instruct's seed tasks, and those written around users' programs as the test; no longer
    than a small model reads."""
    made = out / "chats"
    made.mkdir()
    prepare.self_instruct(shared / "self_instruct", made)
    for split in ("train", "test"):
        chats = map(json.loads, (made / f"{split}.jsonl").read_text("utf8").splitlines())
        turns = ([one["content"] for one in chat["messages"]] for chat in chats)
        rows = [{"prompt": a, "answer": b} for a, b in turns if b and len(a) + len(b) < _LONGEST]
        prepare.write_json_lines(out / f"{split}.jsonl", rows)
    shutil.rmtree(made)


def java(shared: Path, out: Path) -> None:
    """Methods in Java, of CodeXGLUE's pairs: 3,000, 300 and 300."""
    counts = {"train": 3000, "valid": 300, "test": 300}
    for name, count in counts.items():
        file = shared / "codexglue_java_cs" / f"{name}.java-cs.txt.java"
        lines = file.read_text("utf8").splitlines()[:count]
        split = "validation" if name == "valid" else name
        prepare.write_json_lines(out / f"{split}.jsonl", [{"text": line.strip()} for line in lines])


DATA: dict[str, Make] = {
    "questions": questions,
    "spoken": spoken,
    "instructions": instructions,
    "java": java,
}
_WITHOUT_BIASES = ("lora", "ia3", "full")  # which Llama is
ROWS = {
    "reviews": Row("text-classification", "minilm", "rotten_tomatoes"),
    "intents": Row("text-classification", "minilm", "banking77", steps=400),
    "entities": Row("token-classification", "minilm", "wnut17"),
    "questions": Row("question-answering", "minilm", "questions"),
    "similarity": Row(
        *("sentence-similarity", "minilm", "banking77"),
        options=("--task-arg", "kind=label", "--batch-size", "64"),
    ),
    "shakespeare": Row(
        "text-generation", "stories260K", "tinyshakespeare", methods=_WITHOUT_BIASES
    ),
    "problems": Row(
        *("text-generation", "stories260K", "gsm8k"),
        methods=_WITHOUT_BIASES,
        options=("--task-arg", "form=answer", "--batch-size", "8"),
    ),
    "instructions": Row(
        *("text-generation", "stories260K", "instructions"),
        methods=_WITHOUT_BIASES,
        steps=100,
        options=("--task-arg", "form=answer", "--batch-size", "8"),
    ),
    "java": Row(
        *("text-generation", "stories260K", "java"),
        options=("--batch-size", "8"),
        methods=_WITHOUT_BIASES,
    ),
    "spelling": Row(
        *("text2text-generation", "bart-g2p-us", "spoken"),
        options=("--task-arg", "measure=character_error_rate"),
    ),
}
