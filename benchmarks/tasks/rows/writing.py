"""Texts out of texts: sentences out of facts, C# out of Java, summaries. The models are T5 of 0.7
to 0.9 million parameters, pre-trained here on other texts of the kind or on their own sources."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import prepare
import torch
from row import Make, Row

from trimtab.tasks import lookup

Pair = dict[str, str]
_AREA = "area[city centre]"
_ASKING = "Request"  # a method of a client of web services
_SHORT = 200  # letters of a method


def city_centre(shared: Path, out: Path) -> None:
    """Facts of restaurants in a city's centre, and a sentence that tells them."""
    for split, name in (("train", "devset"), ("test", "testset_w_refs")):
        rows = [row for row in _told(shared, name) if _AREA in row["source"]]
        prepare.write_json_lines(out / f"{split}.jsonl", rows[: 1500 if split == "train" else 300])


def riverside(shared: Path, out: Path) -> None:
    """1,000 batches of facts of all other restaurants, with sentences that tell them. It has not
    read of a city's centre."""
    rows = [row for row in _told(shared / "data", "devset") if _AREA not in row["source"]]
    t5(out, rows, words=1200, steps=1000)


def _told(shared: Path, name: str) -> list[Pair]:
    with (shared / "e2e_nlg" / f"{name}.csv").open(encoding="utf8", newline="") as file:
        return [{"source": row["mr"], "target": row["ref"]} for row in csv.DictReader(file)]


def requests(shared: Path, out: Path) -> None:
    """Short Java methods of clients of web services, and the same in C#: of those of CodeXGLUE's
    three files, in their order, 60, 10 and 30 of a hundred."""
    rows = [row for row in _methods(shared) if _ASKING in row["source"]]
    first, second = int(0.6 * len(rows)), int(0.7 * len(rows))
    parts = {"train": rows[:first], "validation": rows[first:second], "test": rows[second:]}
    for split, part in parts.items():
        prepare.write_json_lines(out / f"{split}.jsonl", part)


def programs(shared: Path, out: Path) -> None:
    """1,500 batches of the other short methods: parsers, indexes, documents, version control."""
    rows = [row for row in _methods(shared / "data") if _ASKING not in row["source"]]
    t5(out, rows, words=2000, steps=1500)


def _methods(shared: Path) -> list[Pair]:
    """Each once."""
    found: dict[str, str] = {}
    for name in ("train", "valid", "test"):
        place = shared / "codexglue_java_cs"
        sides = [
            (place / f"{name}.java-cs.txt.{side}").read_text("utf8").splitlines()
            for side in ("java", "cs")
        ]
        found.update((java.strip(), other.strip()) for java, other in zip(*sides, strict=True))
    return [
        {"source": java, "target": other}
        for java, other in found.items()
        if 0 < len(java) < _SHORT and len(other) < _SHORT
    ]


def abstracts(shared: Path, out: Path) -> None:
    """Abstracts of papers, and what one of their readers says of them in a sentence."""
    prepare.scitldr(shared / "scitldr", out)
    rows = (out / "test.jsonl").read_text("utf8").split("\n")
    (out / "test.jsonl").write_text("\n".join(rows[:300]) + "\n", "utf8")


def gaps(shared: Path, out: Path) -> None:
    """400 batches of abstracts of the training split, to tell which sentence was taken out: that
    which has most words in common with the others (PEGASUS, Zhang et al. 2020, arXiv:1912.08777).
    No summary was read."""
    papers = (shared / "data" / "scitldr" / "train.jsonl").read_text("utf8").splitlines()
    texts = [json.loads(paper)["source"] for paper in papers]
    rows = [_with_a_gap(sentences) for sentences in texts if len(sentences) > 2]
    t5(out, rows, words=3000, steps=400)


def _with_a_gap(sentences: Sequence[str]) -> Pair:
    words = [Counter(re.findall(r"\w+", one.lower())) for one in sentences]
    whole = sum(words, Counter())

    def common(i: int) -> float:
        own = words[i]
        return sum((own & (whole - own)).values()) / max(1, sum(own.values()))

    place = max(range(len(sentences)), key=common)
    rest = [one for i, one in enumerate(sentences) if i != place]
    return {"source": " ".join(rest), "target": sentences[place]}


def t5(out: Path, rows: Sequence[Pair], *, words: int, steps: int) -> None:
    """Written as a checkpoint with a tokenizer of its own, and trained on the rows."""
    import transformers as hf
    from datasets import Dataset
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    from rows.sound import pretrained

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=words,
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
    pretrained(lookup("text2text-generation"), out, Dataset.from_list(list(rows)), steps=steps)


DATA: dict[str, Make] = {"city-centre": city_centre, "requests": requests, "abstracts": abstracts}
MODELS: dict[str, Make] = {"t5-riverside": riverside, "t5-programs": programs, "t5-gaps": gaps}
_RATES = {"lora": 3e-3, "full": 1e-3}
_METHODS = ("lora", "ia3", "full")  # T5 has no biases
ROWS = {
    "descriptions": Row(
        *("text2text-generation", "t5-riverside", "city-centre"),
        options=("--task-arg", "max_new_tokens=48"),
        methods=_METHODS,
        rates=_RATES,
    ),
    "requests": Row(
        *("text2text-generation", "t5-programs", "requests"),
        options=("--task-arg", "max_new_tokens=96", "--task-arg", "measure=bleu"),
        methods=_METHODS,
        rates=_RATES,
    ),
    "summaries": Row(
        *("text2text-generation", "t5-gaps", "abstracts"),
        options=(
            *("--task-arg", "max_new_tokens=48", "--task-arg", "measure=rouge"),
            *("--batch-size", "16"),
        ),
        methods=_METHODS,
        rates=_RATES,
    ),
}
