"""Recordings: how they are prepared, runs of classifiers, and a plain module under a loop of one's
own."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers as hf
from places import shared
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import trimtab as tt
from trimtab.core.errors import InputError
from trimtab.data import media
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tune.run import tune

SHORT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SHORT |= {"intermediate_size": 32}
RATE = 16_000


def wav2vec2() -> tuple[Any, Any]:
    convolutions = {"conv_dim": (16, 16), "conv_kernel": (20, 16), "conv_stride": (16, 16)}
    places = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    config = hf.Wav2Vec2Config(**SHORT, **convolutions, **places, classifier_proj_size=16)
    return hf.Wav2Vec2ForSequenceClassification(config), hf.Wav2Vec2FeatureExtractor()


def spectrogram() -> tuple[Any, Any]:
    sizes = {"max_length": 64, "num_mel_bins": 32}
    config = hf.ASTConfig(**SHORT, **sizes)
    return hf.ASTForAudioClassification(config), hf.ASTFeatureExtractor(**sizes)


MADE = {"wav2vec2": wav2vec2, "spectrogram": spectrogram}


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models."""
    folder = tmp_path_factory.mktemp("models")
    for name, make in MADE.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, extractor = make()
        model.save_pretrained(folder / name)
        extractor.save_pretrained(folder / name)
    return folder


def tone(path: Path, seconds: float, rate: int = RATE, hertz: float = 440.0) -> Path:
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * np.arange(seconds * rate) / rate), rate)
    return path


# How recordings are prepared


def test_recordings_are_resampled_cut_and_filled_up(hearing: Path, tmp_path: Path) -> None:
    task = lookup("audio-classification", {"max_seconds": 0.5})
    processor = task.processor(str(hearing / "wav2vec2"))
    cells = [
        str(tone(tmp_path / "long.wav", 2.0, 8_000)),
        str(tone(tmp_path / "short.wav", 0.1)),
        str(tone(tmp_path / "middle.wav", 0.4)),
    ]
    lengths = [len(processor.samples(cell)) for cell in cells]
    assert lengths == [RATE // 2, RATE // 4, int(0.4 * RATE)]
    batch = processor.batch(cells)
    assert batch["input_values"].shape == (3, RATE // 2)
    assert batch["input_values"].mean(-1).abs().max() < 1e-3
    assert not batch["input_values"][2, int(0.4 * RATE) :].any()


def test_recordings_of_a_batch_are_alike(hearing: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    task = lookup("audio-classification")
    cells = [str(tone(tmp_path / f"{n}.wav", n / 4)) for n in (4, 1, 90, 2)]
    rows = Dataset.from_dict({"audio": cells, "label": ["a", "b", "a", "b"]})
    encoded = task.encode(rows, task.processor(str(hearing / "wav2vec2")), ["a", "b"], 0)
    assert [one["length"] for one in encoded.examples] == [3, 5, 10, 100]
    assert [one["labels"] for one in encoded.examples] == [1, 1, 0, 0]


@pytest.mark.parametrize("seconds", [0, -1, "long", True])
def test_seconds_that_are_none(seconds: Any) -> None:
    with pytest.raises(InputError, match="max_seconds"):
        lookup("audio-classification", {"max_seconds": seconds})


def test_a_model_of_texts_does_not_hear() -> None:
    with pytest.raises(InputError, match="minilm"):
        lookup("audio-classification").processor("minilm")


# Runs


def recordings(digits: str, each: int) -> list[Path]:
    """So many of each digit, of all speakers."""
    folder = shared("data", "fsdd_spoken_digits")
    return [path for d in digits for path in sorted(folder.glob(f"{d}_*_[0-9].wav"))[:each]]


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    path = tmp_path / "spoken.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label"])
        rows.writerows((one, one.name[0]) for one in recordings("016", 20))
    return path


@pytest.mark.parametrize("name", MADE)
def test_a_classifier_runs(
    quick: Callable[..., Any], hearing: Path, spoken: Path, tmp_path: Path, name: str
) -> None:
    fields = {"task": "audio-classification", "model": hearing / name, "data": spoken}
    config = quick(**fields, max_steps=3, eval_every=3, lr=1e-3)
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "accuracy"
    assert metrics["baselines"]["head"] is not None
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    new = tmp_path / "new.jsonl"
    (one,) = recordings("7", 1)
    new.write_text(json.dumps({"audio": str(one), "label": "7"}))
    (told,) = predict(config.out, str(new))
    assert told["audio"] == str(one)
    assert told["label"] in ("0", "1", "6")
    with pytest.raises(InputError, match=r"never saw: \['7'\]"):
        evaluate(config.out, str(new), "test")


def test_silence_is_refused(quick: Callable[..., Any], hearing: Path, tmp_path: Path) -> None:
    data = tmp_path / "tones"
    for label in ("low", "high"):
        (data / label).mkdir(parents=True)
        for i in range(12):
            tone(data / label / f"{i}.wav", 0.3, hertz=200 if label == "low" else 900)
    soundfile.write(data / "low" / "3.wav", np.zeros(4000), RATE)
    config = quick(task="audio-classification", model=hearing / "wav2vec2", data=data)
    with pytest.raises(InputError, match=r"3\.wav.*is silent"):
        tune(config, quiet=True)


# A plain module under a loop of one's own


class Sublayer(nn.Module):
    """Post-norm: LayerNorm(x + dense(y))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, width), nn.LayerNorm(width, eps=1e-6)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(x + self.dense(y))


class Layer(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        maps = {name: nn.Linear(width, width, bias=False) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(maps)})
        self.attention["output"] = Sublayer(width, width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = Sublayer(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x) for one in self.attention["self"].values())
        x = self.attention["output"](F.scaled_dot_product_attention(q, k, v), x)
        return self.output(F.gelu(self.intermediate["dense"](x), approximate="tanh"), x)


class KeywordTransformer(nn.Module):
    """Berg et al. 2021 (arXiv:2104.00769): a transformer over the frames of a second."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, frames = config["hidden_size"], config["num_frames"]
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.empty(1, frames + 1, width))
        self.projection = nn.Linear(config["num_mfcc"], width)
        layers = [Layer(width, config["intermediate_size"]) for _ in range(12)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.classifier = nn.Linear(width, len(config["labels"]))

    def forward(self, frames: Tensor) -> Tensor:
        """(batch, frames, coefficients) -> (batch, labels)"""
        first = self.cls_token.expand(len(frames), -1, -1)
        x = torch.cat([first, self.projection(frames)], 1) + self.position_embeddings
        for layer in self.encoder["layer"]:
            x = layer(x)
        return self.classifier(x[:, 0])


def cepstrum(wave: Tensor, t: dict[str, Tensor]) -> Tensor:
    """(samples,) of at most a second -> (98, 40)"""
    frames = F.pad(wave[:RATE], (0, max(0, RATE - len(wave)))).unfold(0, 480, 160)
    parts = [frames * t["frontend.window"] @ t[f"frontend.dft_{p}"].T for p in ("real", "imag")]
    mel = torch.hypot(*parts) @ t["frontend.mel"].T
    return mel.clamp(min=1e-12).log() @ t["frontend.dct"].T * t["frontend.scale"]


def test_a_plain_module_learns_new_words(tmp_path: Path) -> None:
    """Twelve keywords are known to it, and digits are none of them; then it is taught three."""
    folder = shared("models", "kwt1-speech-commands")
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    model = KeywordTransformer(config)
    model.load_state_dict({k: x for k, x in tensors.items() if not k.startswith("frontend")})
    files = recordings("016", 24)
    x = torch.stack([cepstrum(torch.from_numpy(media.audio(str(f), RATE)), tensors) for f in files])
    y = torch.tensor(["016".index(file.name[0]) for file in files])
    with torch.no_grad():
        heard = model(x).argmax(-1)
    assert (heard == config["labels"].index("_unknown_")).float().mean() > 0.7

    model.classifier = nn.Linear(64, 3)
    base = copy.deepcopy(model)
    tt.attach(model, tt.LoRA(rank=4), ["query", "value"], train="classifier")
    optimizer = torch.optim.AdamW(tt.parameters(model), lr=5e-3)
    held_out = torch.arange(len(y)) % 4 == 0
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x[~held_out]), y[~held_out]).backward()
        optimizer.step()
    with torch.no_grad():
        answers = model.eval()(x[held_out])
        assert (answers.argmax(-1) == y[held_out]).float().mean() > 0.8
        tt.save(model, tmp_path / "words")
        tt.load(base, tmp_path / "words")
        torch.testing.assert_close(base.eval()(x[held_out]), answers)
