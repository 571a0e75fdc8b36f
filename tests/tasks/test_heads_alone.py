"""Heads that are more than a linear map over a vector are trained alone, too: maps of one pixel,
projections before a mean over what is no padding, norms behind a mean."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from test_sound import tone, wav2vec2
from tiny_video import clips, videomae
from tiny_vision import written

from trimtab.core.heads import body, heads
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tasks.models import resolve
from trimtab.tune import features, replay
from trimtab.tune.run import tune
from trimtab.tune.session import open_session


def whisper() -> tuple[Any, Any]:
    sides = {f"encoder_{what}": n for what, n in (("layers", 1), ("attention_heads", 2))}
    config = hf.WhisperConfig(
        **sides,
        encoder_ffn_dim=32,
        d_model=16,
        num_mel_bins=20,
        max_source_positions=50,
        classifier_proj_size=16,
    )
    return hf.WhisperForAudioClassification(config), hf.WhisperFeatureExtractor(20, chunk_length=1)


def hearing(make: Callable[[], Any]) -> Callable[[Path], Path]:
    def written(folder: Path) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for part in make():
                part.save_pretrained(folder)
        return folder

    return written


def tones(folder: Path) -> Path:
    """Of several lengths, so that batches are padded."""
    for label, hertz in (("low", 200), ("high", 900)):
        (folder / label).mkdir(parents=True)
        for i in range(15):
            tone(folder / label / f"{i}.wav", 0.3 + 0.02 * i, hertz=hertz + 5 * i)
    return folder


def squares(folder: Path) -> Path:
    from PIL import Image

    for label in ("dark", "light"):
        (folder / label).mkdir(parents=True)
        for i in range(15):
            shade = (40 if label == "dark" else 180) + 4 * i
            Image.new("RGB", (32, 32), (shade, 100, 100)).save(folder / label / f"{i}.png")
    return folder


MODELS: dict[str, tuple[str, Callable[[Path], Path], Callable[[Path], Path]]] = {
    "resnet": ("image-classification", lambda path: written("resnet", path), squares),
    "wav2vec2": ("audio-classification", hearing(wav2vec2), tones),
    "whisper": ("audio-classification", hearing(whisper), tones),
    "videomae": ("video-classification", videomae, clips),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_head_is_trained_alone(quick: Callable[..., Any], tmp_path: Path, name: str) -> None:
    """The run has its row, and tells the same numbers when it is evaluated again."""
    task, make, data = MODELS[name]
    model = make(tmp_path / "models" / name)
    config = quick(task=task, model=model, data=data(tmp_path / "data"), max_steps=2)
    config.target = "*.convolution" if name == "resnet" else None
    metrics = tune(config, quiet=True)
    head = metrics["baselines"]["head"]
    assert head is not None
    assert not any("head only was not measured" in note for note in metrics["notes"])
    again = evaluate(config.out, None, "test")
    assert again["value"] == metrics["test"]


def xlnet(folder: Path) -> Path:
    """Its head is a summary and a classifier; it tells no limit of positions."""
    words = hf.AutoTokenizer.from_pretrained(resolve("minilm"))
    sizes: dict[str, Any] = {
        "d_model": 16,
        "n_layer": 1,
        "n_head": 2,
        "d_inner": 16,
        "vocab_size": len(words),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf.XLNetForSequenceClassification(hf.XLNetConfig(**sizes)).save_pretrained(folder)
    words.model_max_length = 10**30
    words.save_pretrained(folder)
    return folder


def uneven(path: Path) -> Path:
    """A tenth is rare, and the text says nothing of it."""
    rows = [f"the same,{'rare' if i % 10 == 0 else 'common'}" for i in range(200)]
    path.write_text("\n".join(["text,label", *rows]), "utf8")
    return path


def test_the_head_of_several_parts_with_weights(quick: Callable[..., Any], tmp_path: Path) -> None:
    config = quick(model=xlnet(tmp_path / "xlnet"), data=uneven(tmp_path / "rows.csv"), max_steps=1)
    config.task_arg = {"weights": "balanced"}
    metrics = tune(config, quiet=True)
    assert metrics["baselines"]["head"] is not None


def test_heads_alone_weigh_as_the_model_does(quick: Callable[..., Any], tmp_path: Path) -> None:
    """Where nothing tells the labels apart, balanced weights make both as likely."""
    config = quick(model="minilm", data=uneven(tmp_path / "rows.csv"), method="head", lr=0.01)
    config.task_arg, config.max_steps, config.eval_every = {"weights": "balanced"}, 40, 40
    tune(config, quiet=True)
    new = tmp_path / "new.csv"
    new.write_text("text\nthe same\n", "utf8")
    (told,) = predict(config.out, str(new))
    assert told["probability"] < 0.7  # it is 0.9 of the common one without weights


@pytest.mark.parametrize("name", ["wav2vec2", "whisper", "videomae"])
def test_a_tail_gives_what_the_model_gives(
    quick: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    """Of batches with padding; and its gradients are those of the model's own head."""
    kind, make, data = MODELS[name]
    task = lookup(kind)
    config = quick(task=kind, model=make(tmp_path / "models" / name), data=tmp_path)
    labels = {"video-classification": ["left", "right"]}.get(kind, ["high", "low"])
    session = open_session(config, labels)
    from trimtab.data import load

    rows = load(str(data(tmp_path / "data")), task.columns).train
    examples = session.encode(rows).examples
    found = features.extract(session.model, examples, session.collate, batch_size=7, autocast=False)
    assert isinstance(found, replay.Recorded)
    assert len(found.parts) == -(-len(examples) // 7)
    tail = features.head_of(session.model)
    assert sorted(n for n, _ in tail.named_parameters()) == sorted(
        name
        for name, _ in session.model.named_parameters()
        if name.startswith(tuple(heads(session.model)))
    )
    batch = session.collate(examples[:7])
    session.model.zero_grad()
    task.loss(session.model, batch)[0].backward()
    expected = {n: p.grad.clone() for n, p in tail.named_parameters()}
    alone = copy.deepcopy(tail)
    alone.zero_grad()
    task.loss_of(alone(found.parts[0]), batch["labels"]).backward()
    for key, parameter in alone.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key], atol=1e-5, rtol=1e-4)
    assert all(p.grad is not None for p in alone.parameters())


def test_bodies_are_no_heads() -> None:
    """A model that is a body itself, or has several, has nothing upon it."""
    small = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
    encoder = hf.T5EncoderModel(hf.T5Config(**small))
    assert heads(encoder) == []
    assert heads(hf.T5Model(hf.T5Config(**small))) == []
    assert body(hf.T5Model(hf.T5Config(**small))) is None
    model = whisper()[0]
    assert body(model) is model.encoder
    assert heads(model) == ["projector", "classifier"]


def test_what_has_no_room_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = whisper()[0].eval()
    examples = [{"input_features": torch.zeros(20, 100)}] * 2
    monkeypatch.setattr(replay, "ROOM", 1000)
    found = features.extract(
        model,
        examples,
        lambda given: {"input_features": torch.stack([one["input_features"] for one in given])},
        batch_size=2,
        autocast=False,
    )
    assert found is None
