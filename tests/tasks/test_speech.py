"""Speech that is written down: runs of both kinds of models, alignment without padding, and rows
that cannot be used."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from places import shared
from tiny_speech import MADE, RATE, WORDS, spelling, transcripts, written
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tasks.tokens import IGNORED
from trimtab.tune.run import tune

TASK = "automatic-speech-recognition"


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models."""
    folder = tmp_path_factory.mktemp("models")
    for name in MADE:
        written(name, folder)
    return folder


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Three words, each said 24 times."""
    folder = shared("data", "fsdd_spoken_digits")
    files = [path for digit in "016" for path in sorted(folder.glob(f"{digit}_*_[0-9].wav"))[:24]]
    return transcripts(tmp_path / "spoken.csv", files)


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """rows(name, (seconds, text), …) -> a file that names as many hums and what they say."""

    def rows(name: str, *given: tuple[float, str]) -> Path:
        lines = []
        for i, (seconds, text) in enumerate(given):
            time = np.arange(int(seconds * RATE)) / RATE
            pitch = 200 + 400 * (ord(text[:1] or "a") % 5)
            hum = 0.5 * np.sin(2 * np.pi * (pitch + i) * time)
            soundfile.write(tmp_path / f"{name}-{i}.wav", hum, RATE)
            lines.append(json.dumps({"audio": f"{name}-{i}.wav", "text": text}))
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(lines), "utf8")
        return path

    return rows


class Given:
    """A model that gives these scores, and whose blank is token 0."""

    config = SimpleNamespace(pad_token_id=0)

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def __call__(self) -> Any:
        return SimpleNamespace(logits=self.scores)


# Runs


@pytest.mark.parametrize("name", MADE)
def test_a_run_its_evaluation_and_its_predictions(
    quick: Callable[..., Any], writers: Path, spoken: Path, tmp_path: Path, name: str
) -> None:
    config = quick(task=TASK, model=writers / name, data=spoken, target="all-linear")
    metrics = tune(config, quiet=True)
    if name == "aligned":  # the vocabulary is that of the texts
        assert config.labels == ["<pad>", "<unk>", "|", *"einorsxz"]
    assert metrics["metric"] == "word_error_rate"
    assert not metrics["higher_is_better"]
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    (heard,) = sorted(shared("data", "fsdd_spoken_digits").glob("7_theo_3.wav"))
    (told,) = predict(config.out, str(heard))
    assert told["audio"] == str(heard)
    assert isinstance(told["text"], str)


def test_the_loss_is_that_of_all_paths() -> None:
    """Against every path there is: 4 frames of 4 tokens, one of which is the blank."""
    task, scores = lookup(TASK), torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    texts, frames = [[3], [2, 2]], [2, 4]
    batch = {
        "frames": torch.tensor(frames),
        "labels": torch.tensor([[3, IGNORED], [2, 2]]),
    }
    expected = []
    for text, n, one in zip(texts, frames, scores.log_softmax(-1), strict=True):
        said = [
            sum(one[t, token] for t, token in enumerate(path))
            for path in itertools.product(range(4), repeat=n)
            if [token for token, _ in itertools.groupby(path) if token] == text
        ]
        expected.append(-torch.stack(said).logsumexp(0) / len(text))
    model = Given(scores)
    loss, _ = task.loss(model, batch)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_padding_says_nothing(writers: Path, rows: Callable[..., Path]) -> None:
    """A recording by itself, and beside a longer one, has the same loss and the same scores."""
    from datasets import load_dataset

    task = lookup(TASK)
    processor = task.processor(str(writers / "aligned"))
    labels = task.order(str(writers / "aligned"), ["a", "b"])
    model, fresh = task.model(str(writers / "aligned"), labels, processor, torch.float32, False)
    assert fresh == ["lm_head.bias", "lm_head.weight"]
    assert model.lm_head.out_features == len(labels) == 5
    path = rows("two", (0.3, "ab"), (0.9, "b a a"))
    data = load_dataset("json", data_files=str(path), split="train")
    data = data.map(lambda row: {"audio": str(path.parent / row["audio"])})
    examples = task.encode(data, processor, labels, 0).examples
    assert [one["labels"] for one in examples] == [[3, 4], [4, 2, 3, 2, 3]]
    model.requires_grad_(False).eval()
    alone = [task.loss(model, task.collate([one], processor)) for one in examples]
    together, outputs = task.loss(model, batch := task.collate(examples, processor))
    torch.testing.assert_close(together, torch.stack([loss for loss, _ in alone]).mean())
    for found, (_, one) in zip(task.rows_of(outputs, batch), alone, strict=True):
        np.testing.assert_allclose(found, one.logits[0], atol=2e-5)


def test_the_likeliest_path_is_read(writers: Path) -> None:
    """Repeats are merged, then blanks are dropped, and what is left has single spaces."""
    processor = lookup(TASK).processor(str(writers / "aligned"))
    processor.spell(["<pad>", "<unk>", "|", "a", "b"])
    path = [0, 3, 3, 0, 3, 2, 2, 0, 2, 4, 4, 0]
    assert processor.text(np.eye(5)[path]) == "aa b"


def test_a_whisper_learns_what_comes_after_the_start(writers: Path) -> None:
    """The start that the model puts before a text itself is not learnt a second time."""
    processor = lookup(TASK, {"language": "en"}).processor(str(writers / "writing"))
    tokens = processor.tokenizer.convert_ids_to_tokens(processor.ids("one"))
    assert tokens == [
        *("<|en|>", "<|transcribe|>", "<|notimestamps|>"),
        *("o", "n", "e", "<|endoftext|>"),
    ]


# What cannot be used


def refused(config: Any) -> str:
    with pytest.raises(InputError) as error:
        tune(config, quiet=True)
    return str(error.value)


def test_texts_and_recordings_that_do_not_fit(
    quick: Callable[..., Any], writers: Path, rows: Callable[..., Path], tmp_path: Path
) -> None:
    """Each fault with its file and row."""
    data = rows(
        "bad",
        *((0.4, "hum"), (0.1, "a text of far more letters than frames"), (0.3, ""), (2.5, "long")),
    )
    soundfile.write(tmp_path / "bad-0.wav", np.zeros(RATE), RATE)
    config = quick(task=TASK, model=writers / "aligned", data=data, task_arg={"max_seconds": 2})
    told = refused(config)
    assert "bad.jsonl, line 1: the audio 'bad-0.wav' is silent" in told
    assert "line 2: the text needs 39 frames, and the model has 12 for 0.10 seconds" in told
    assert "line 3: empty text" in told
    assert "bad-3.wav' has 2.5 seconds and 2 are heard" in told
    config = quick(task=TASK, model=writers / "writing", data=data)
    told = refused(config)
    assert "line 2: the text needs 40 tokens, and the model has 20" in told


def test_letters_that_the_vocabulary_lacks(
    quick: Callable[..., Any], rows: Callable[..., Path], tmp_path: Path
) -> None:
    """Told with what it has; a text in the other case is learnt when asked for."""
    model = written("aligned", tmp_path / "capital")
    spelling(tmp_path, "ABCDEFGHIJKLMNOPQRSTUVWXYZ").save_pretrained(model)
    data = rows("low", *((0.4, WORDS[i % 10]) for i in range(30)))
    config = quick(task=TASK, model=model, data=data)
    told = refused(config)
    assert "low.jsonl, line 1: the text has 'z' 'e' 'r' 'o', which the model's vocabulary" in told
    assert "it has ABCDEFGHIJKLMNOPQRSTUVWXYZ" in told
    config = quick(task=TASK, model=model, data=data, task_arg={"case": "upper"}, max_steps=2)
    tune(config, quiet=True)
    assert config.labels[:5] == ["<pad>", "<unk>", "|", "A", "B"]


def test_new_texts_with_letters_that_training_had_not(
    quick: Callable[..., Any], writers: Path, rows: Callable[..., Path]
) -> None:
    data = rows("known", *((0.4, "abba") for _ in range(30)))
    config = quick(task=TASK, model=writers / "aligned", data=data, max_steps=2)
    tune(config, quiet=True)
    with pytest.raises(InputError, match=r"new\.jsonl, row 2: the text has 'c'"):
        evaluate(config.out, str(rows("new", (0.4, "ab"), (0.4, "abc"))), "test")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"case": "title"}, "case is keep, upper or lower"),
        ({"max_seconds": 0}, "max_seconds"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        lookup(TASK, options)


def test_models_that_do_not_write(writers: Path) -> None:
    with pytest.raises(InputError, match=r"minilm.* does not write down speech"):
        lookup(TASK).processor("minilm")
    with pytest.raises(InputError, match="no choice of languages"):
        lookup(TASK, {"language": "en"}).processor(str(writers / "aligned"))
    with pytest.raises(InputError, match="language 'Klingon'"):
        lookup(TASK, {"language": "Klingon"}).processor(str(writers / "writing"))


def test_a_sampling_rate_that_is_none(
    writers: Path, rows: Callable[..., Path], tmp_path: Path
) -> None:
    """By the command line: the file, the row, the rate, and no traceback."""
    data = rows("hums", *((0.4, "hum") for _ in range(6)))
    for i, rate in ((2, 0), (4, 12)):
        path = tmp_path / f"hums-{i}.wav"
        wave = path.read_bytes()  # of a WAV file, the rate stands in bytes 24 to 28
        path.write_bytes(wave[:24] + rate.to_bytes(4, "little") + wave[28:])
    command = [
        *(sys.executable, "-m", "trimtab", "tune", "--task", TASK),
        *("--model", str(writers / "aligned"), "--data", str(data)),
        *("--out", str(tmp_path / "run")),
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    told = " ".join(process.stderr.split())
    assert process.returncode == 2
    assert "hums.jsonl, line 3: the audio 'hums-2.wav' cannot be read as a recording" in told
    assert "line 5: the audio 'hums-4.wav' claims 12 samples a second" in told
    assert "Traceback" not in told
