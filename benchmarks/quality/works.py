"""The works that every method is trained on: real weights, real data, one metric each.

A work opens a fresh model with the method attached, gives batches in an order that follows from the
seed, and scores each held-out example, so that two methods are compared example by example. Scores
are higher where better: 1 or 0 for a right or wrong answer, or the log-likelihood of a token.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arpabet import ipa
from torch import Tensor, nn
from torch.nn import functional as F

import trimtab
from trimtab.core.adapter import Adapter
from trimtab.core.method import Method, Selection
from trimtab.evaluate.predict import precision

SHARED = Path(__file__).parents[3] / "shared"


@dataclass
class Trial:
    """A fresh model with its adapter; batches of a seed and a number of steps, as places in the
    training data; the loss of one; the scores of a split."""

    model: nn.Module
    adapter: Adapter
    batches: Callable[[int, int], Iterator[list[int]]]
    loss: Callable[[list[int]], Tensor]
    scores: Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Work:
    """`steps` of `batch` examples; `search` steps where a learning rate is chosen. `methods` are
    all, or the names of some."""

    name: str
    metric: str
    model: str
    data: str
    open: Callable[[Method, int], Trial]
    path: Path
    steps: int = 300
    search: int = 100
    methods: tuple[str, ...] = ()

    def takes(self, method: str) -> bool:
        return not self.methods or method in self.methods


SOME = (
    *("full", "head", "bitfit", "ln", "ia3", "lora", "dora", "oft"),
    *("houlsby", "parallel", "prefix", "reft"),
)
"""One of each kind, for the works beside the two of text."""


def given(model: nn.Module, method: Method, count: int) -> AbstractContextManager[Any]:
    """Facts that a method needs beside the examples: here all are of one task."""
    if "task_ids" in method.needs:
        return trimtab.given(model, task_ids=torch.zeros(count, dtype=torch.long))
    return trimtab.given(model)


def shuffled(count: int, batch: int, seed: int, steps: int) -> Iterator[list[int]]:
    """Batches of whole numbers below `count`, epoch after epoch, each in an order of its own."""
    generator, done = torch.Generator().manual_seed(seed), 0
    while done < steps:
        for rows in torch.randperm(count, generator=generator).split(batch):
            if done < steps and len(rows) == batch:
                done += 1
                yield rows.tolist()


# Text: MiniLM with a new head, as `trimtab tune` trains it.


@dataclass
class Text:
    """A sequence classifier upon MiniLM; the head starts where training it alone brings it."""

    folder: Path
    batch: int = 32
    dtype: str = "bfloat16"
    encoded: dict[int, dict[str, Any]] = field(default_factory=dict)
    probed: dict[tuple[int, str], nn.Module] = field(default_factory=dict)

    def __call__(self, method: Method, seed: int) -> Trial:
        from trimtab.tune.run import start_from_probe, trained_whole
        from trimtab.tune.session import narrow, open_session, settle_length

        config = self.config(method)
        session = open_session(config, self.labels)
        self.dtype = config.dtype
        settle_length(session, self.splits.train)
        encoded = self.encode(session)
        head = self.head(session, encoded)
        narrow(session, encoded["train"])
        torch.manual_seed(seed)
        adapter = trimtab.attach(session.model, method, train=trained_whole(session))
        start_from_probe(adapter, head[0], head[1])
        model = session.model

        examples = encoded["train"].examples

        def batches(seed: int, steps: int) -> Iterator[list[int]]:
            from trimtab.tune.trainer import LengthGroups

            done, epoch = 0, 0
            groups = LengthGroups([one["length"] for one in examples], self.batch, seed)
            while done < steps:
                groups.set_epoch(epoch)
                order, epoch = list(groups), epoch + 1
                for start in range(0, len(order), self.batch):
                    if done < steps:
                        done += 1
                        yield order[start : start + self.batch]

        def loss(rows: list[int]) -> Tensor:
            inputs = session.collate([examples[i] for i in rows])
            with precision(model.device, config.autocast), given(model, method, len(rows)):
                return session.task.loss(model, inputs)[0]

        def scores(split: str) -> np.ndarray:
            with given(model, method, 1):
                outputs = self.logits(session, encoded[split], method)
            rows = getattr(self.splits, split)
            pairs = zip(session.answers(outputs, rows), session.references(rows), strict=True)
            return np.array([float(found == label) for found, label in pairs])

        return Trial(model, adapter, batches, loss, scores)

    def logits(self, session: Any, encoded: Any, method: Method) -> np.ndarray:
        if "task_ids" not in method.needs:
            return session.outputs(encoded)
        found = []
        for start in range(0, len(encoded.examples), 64):
            rows = encoded.examples[start : start + 64]
            inputs = {k: v for k, v in session.collate(rows).items() if k != "labels"}
            with torch.no_grad(), given(session.model, method, len(rows)):
                found.append(session.model.eval()(**inputs).logits.float())
        return encoded.restore(torch.cat(found).numpy())

    def config(self, method: Method) -> Any:
        from trimtab.tune.config import Config

        return Config(
            model="minilm",
            data=str(self.folder),
            out="none",
            method=method.name,
            method_arg=method.arguments(),
            dtype=self.dtype,  # type: ignore[arg-type]
            attention="eager",
        )

    @functools.cached_property
    def splits(self) -> Any:
        from trimtab.tune.session import read_data

        return read_data(self.config(trimtab.LoRA()))

    @functools.cached_property
    def labels(self) -> list[str]:
        from trimtab.tasks import lookup

        task = lookup("text-classification")
        return task.order("minilm", task.labels(self.splits.train))

    def encode(self, session: Any) -> dict[str, Any]:
        length = session.config.max_length
        if length not in self.encoded:
            names = ("train", "validation", "test")
            self.encoded[length] = {s: session.encode(getattr(self.splits, s)) for s in names}
        return self.encoded[length]

    def head(self, session: Any, encoded: dict[str, Any]) -> tuple[str, nn.Module]:
        """The head's name, and the head as training it alone upon the frozen base leaves it."""
        from trimtab.core.heads import heads
        from trimtab.tune import features

        key = (session.config.max_length, str(next(session.model.parameters()).dtype))
        if key not in self.probed:
            cached = [
                features.extract(
                    session.model,
                    encoded[split].examples,
                    session.collate,
                    batch_size=64,
                    autocast=session.config.autocast,
                )
                for split in ("train", "validation")
            ]
            own = features.head_of(session.model)
            train, held_out = cached
            assert own is not None
            assert train is not None
            assert held_out is not None
            self.probed[key] = features.probe(own, train, held_out, session.task, 0)
        return heads(session.model)[0], self.probed[key]


# Language modelling: a story teller of 260,000 parameters learns Shakespeare.


@dataclass
class Stories:
    """Next tokens of Shakespeare, in rows of `length`; the score is the log-likelihood a token."""

    model: Path
    text: Path
    length: int = 128
    batch: int = 16

    @functools.cached_property
    def rows(self) -> dict[str, Tensor]:
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(self.model)(self.text.read_text(encoding="utf8"))
        ids = torch.tensor(tokens["input_ids"])
        rows = ids[: len(ids) // self.length * self.length].view(-1, self.length)
        cut = [int(len(rows) * share) for share in (0.8, 0.9)]
        return dict(zip(("train", "validation", "test"), rows.tensor_split(cut), strict=True))

    def __call__(self, method: Method, seed: int) -> Trial:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.model)
        torch.manual_seed(seed)
        adapter = trimtab.attach(model, method)

        def each(ids: Tensor) -> Tensor:
            with given(model, method, len(ids)):
                logits = model(input_ids=ids).logits[:, :-1]
            return -F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").mean(1)

        train = self.rows["train"]

        def batches(seed: int, steps: int) -> Iterator[list[int]]:
            return shuffled(len(train), self.batch, seed, steps)

        def scores(split: str) -> np.ndarray:
            with torch.no_grad():
                return torch.cat([each(ids) for ids in self.rows[split].split(64)]).numpy()

        return Trial(model, adapter, batches, lambda rows: -each(train[rows]).mean(), scores)


# Images: DeiT reads digits.


@dataclass
class Digits:
    """Ten handwritten digits, drawn large enough for a model of 224 pixels."""

    model: Path
    data: Path
    batch: int = 16

    @functools.cached_property
    def images(self) -> dict[str, tuple[Tensor, Tensor]]:
        raw = gzip.decompress((self.data / "t10k-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((self.data / "t10k-labels-idx1-ubyte.gz").read_bytes())
        pictures = torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
        classes = torch.frombuffer(bytearray(labels[8:]), dtype=torch.uint8).long()
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
        cut = {"train": order[:8000], "validation": order[8000:8400], "test": order[8400:9400]}
        return {split: (pictures[rows], classes[rows]) for split, rows in cut.items()}

    def __call__(self, method: Method, seed: int) -> Trial:
        from transformers import AutoModelForImageClassification

        torch.manual_seed(seed)
        model = AutoModelForImageClassification.from_pretrained(
            self.model, num_labels=10, ignore_mismatched_sizes=True
        )
        whole = None if isinstance(method, Selection) else ["classifier"]
        adapter = trimtab.attach(model, method, train=whole)

        def logits(pictures: Tensor) -> Tensor:
            large = F.interpolate(pictures.float() / 255, size=224, mode="bilinear")
            with given(model, method, len(pictures)):
                return model(pixel_values=(large.expand(-1, 3, -1, -1) - 0.5) / 0.5).logits

        def batches(seed: int, steps: int) -> Iterator[list[int]]:
            return shuffled(len(self.images["train"][1]), self.batch, seed, steps)

        def loss(rows: list[int]) -> Tensor:
            pictures, classes = self.images["train"]
            return F.cross_entropy(logits(pictures[rows]), classes[rows])

        def scores(split: str) -> np.ndarray:
            pictures, classes = self.images[split]
            with torch.no_grad():
                found = torch.cat([logits(some).argmax(-1) for some in pictures.split(50)])
            return (found == classes).float().numpy()

        return Trial(model, adapter, batches, loss, scores)


# Sequence to sequence: a speller of phonemes learns another dictionary's conventions.


@dataclass
class Phonemes:
    """Words of the CMU dictionary in the letters that the model knows; right is the whole word."""

    model: Path
    data: Path
    batch: int = 64
    held_out: int = 2000

    @functools.cached_property
    def letters(self) -> Mapping[str, Mapping[str, int]]:
        config = json.loads((self.model / "config.json").read_text(encoding="utf8"))
        names = ("grapheme_chars", "phoneme_chars")
        return {n: {c: i for i, c in enumerate(config[n]) if c != "_"} for n in names}

    @functools.cached_property
    def rows(self) -> dict[str, list[tuple[list[int], list[int]]]]:
        return {split: self._read(split) for split in ("train", "validation", "test")}

    def _read(self, split: str) -> list[tuple[list[int], list[int]]]:
        lines = (self.data / f"{split}.tsv").read_text(encoding="utf8").splitlines()[1:]
        spelt, sounds = self.letters["grapheme_chars"], self.letters["phoneme_chars"]
        rows = []
        for line in lines:
            word, phonemes = line.split("\t")
            if all(letter in spelt for letter in word):
                said = [sounds[letter] for one in phonemes.split() for letter in ipa(one)]
                rows.append(([1, *(spelt[letter] for letter in word), 2], [*said, 2]))
        return rows if split == "train" else rows[: self.held_out]

    def __call__(self, method: Method, seed: int) -> Trial:
        from transformers import BartForConditionalGeneration

        model = BartForConditionalGeneration.from_pretrained(self.model)
        torch.manual_seed(seed)
        adapter = trimtab.attach(model, method)

        def outputs(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
            words, sounds = (_padded([row[i] for row in rows]) for i in (0, 1))
            labels = sounds.masked_fill(sounds == 0, -100)
            with given(model, method, len(rows)):
                found = model(input_ids=words, attention_mask=words.ne(0).long(), labels=labels)
            return found.logits, labels

        train = self.rows["train"]

        def batches(seed: int, steps: int) -> Iterator[list[int]]:
            return shuffled(len(train), self.batch, seed, steps)

        def loss(rows: list[int]) -> Tensor:
            logits, labels = outputs([train[i] for i in rows])
            return F.cross_entropy(logits.mT, labels)

        def scores(split: str) -> np.ndarray:
            """Given the right letters so far, each next one is right: so is greedy decoding."""
            found, rows = [], self.rows[split]
            with torch.no_grad():
                for start in range(0, len(rows), 200):
                    logits, labels = outputs(rows[start : start + 200])
                    right = (logits.argmax(-1) == labels) | (labels == -100)
                    found.append(right.all(1).float())
            return torch.cat(found).numpy()

        return Trial(model, adapter, batches, loss, scores)


def _padded(rows: Sequence[list[int]]) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def works() -> list[Work]:
    """All of them; where their data lies, `Work.path` says."""
    models, data = SHARED / "models", SHARED / "data"
    tomatoes, banking = data / "rotten_tomatoes", data / "banking77"
    stories, deit, bart = (
        models / name for name in ("stories260K", "deit-tiny-patch16-224", "bart-g2p-us")
    )
    shakespeare, digits, words = (
        data / name for name in ("tinyshakespeare", "mnist_t10k", "cmudict")
    )
    return [
        Work(tomatoes.name, "accuracy", "MiniLM-L6", tomatoes.name, Text(tomatoes), tomatoes),
        Work(banking.name, "accuracy", "MiniLM-L6", banking.name, Text(banking), banking),
        Work(
            "shakespeare",
            "log-likelihood a token (nats)",
            stories.name,
            shakespeare.name,
            Stories(stories, shakespeare / "input.txt"),
            shakespeare,
            methods=SOME,
        ),
        Work(
            "phonemes",
            "whole words",
            bart.name,
            words.name,
            Phonemes(bart, words),
            words,
            methods=SOME,
        ),
        Work(
            "digits",
            "accuracy",
            "DeiT-tiny",
            digits.name,
            Digits(deit, digits),
            digits,
            steps=100,
            search=40,
            methods=SOME,
        ),
    ]
