"""Texts: labels, entities, answers, speeches, spelling."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import prepare
import prepare_qa
import torch
from arpabet import ipa
from row import Make, Row

from trimtab.tasks import lookup

_LONGEST = 600  # letters of an instruction with its answer
_NEW = "area[city centre]"


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
        _write(out / f"{split}.jsonl", rows)
    shutil.rmtree(made)


def java(shared: Path, out: Path) -> None:
    """Methods in Java, of CodeXGLUE's pairs: 3,000, 300 and 300."""
    counts = {"train": 3000, "valid": 300, "test": 300}
    for name, count in counts.items():
        file = shared / "codexglue_java_cs" / f"{name}.java-cs.txt.java"
        lines = file.read_text("utf8").splitlines()[:count]
        split = "validation" if name == "valid" else name
        _write(out / f"{split}.jsonl", [{"text": line.strip()} for line in lines])


def city_centre(shared: Path, out: Path) -> None:
    """Facts of restaurants in a city's centre, and a sentence that tells them."""
    for split, name in (("train", "devset"), ("test", "testset_w_refs")):
        rows = [row for row in _told(shared, name) if _NEW in row["source"]]
        _write(out / f"{split}.jsonl", rows[: 1500 if split == "train" else 300])


def _told(shared: Path, name: str) -> list[dict[str, str]]:
    with (shared / "e2e_nlg" / f"{name}.csv").open(encoding="utf8", newline="") as file:
        return [{"source": row["mr"], "target": row["ref"]} for row in csv.DictReader(file)]


def _write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, "utf8")


def t5(shared: Path, out: Path) -> None:
    """T5, 0.7 million parameters: 1,000 batches of facts of all other restaurants, with sentences
    that tell them. It has not read of a city's centre."""
    import transformers as hf
    from datasets import Dataset
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    from rows.sound import pretrained

    rows = [row for row in _told(shared / "data", "devset") if _NEW not in row["source"]]
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator([text for row in rows for text in row.values()], trainer)
    tokens.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=tokens, **names)
    torch.manual_seed(0)
    sizes = {"d_model": 96, "d_kv": 24, "d_ff": 256, "num_layers": 3, "num_heads": 4}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = hf.T5Config(vocab_size=len(tokenizer), dropout_rate=0.0, **sizes, **ends)
    for part in (hf.T5ForConditionalGeneration(config), tokenizer):
        part.save_pretrained(out)
    pretrained(lookup("text2text-generation"), out, Dataset.from_list(rows), steps=1000)


DATA: dict[str, Make] = {
    "questions": questions,
    "spoken": spoken,
    "instructions": instructions,
    "java": java,
    "city-centre": city_centre,
}
MODELS: dict[str, Make] = {"t5-riverside": t5}
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
    "instructions": Row(
        *("text-generation", "stories260K", "instructions"),
        steps=100,
        options=("--task-arg", "form=answer", "--batch-size", "8"),
    ),
    "java": Row("text-generation", "stories260K", "java", options=("--batch-size", "8")),
    "descriptions": Row(
        *("text2text-generation", "t5-riverside", "city-centre"),
        options=("--task-arg", "max_new_tokens=48"),
        rates={"lora": 3e-3, "bitfit": 3e-3, "full": 1e-3},
    ),
    "spelling": Row(
        *("text2text-generation", "bart-g2p-us", "spoken"),
        options=("--task-arg", "measure=character_error_rate"),
    ),
}
