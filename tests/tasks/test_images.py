"""Pictures: how they are prepared and kept, what frozen batch norms do, runs of classifiers."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from places import shared
from tiny_vision import written
from torch import nn
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from trimtab.core.errors import InputError
from trimtab.data import media
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tasks.pictures import Pictures, hold_statistics
from trimtab.tune.run import tune

IMAGENET = {"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]}
PROCESSORS = {
    "vit": ViTImageProcessorPil(size={"height": 40, "width": 40}),
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875),
    "raw": ViTImageProcessorPil(size={"height": 40, "width": 40}, do_normalize=False),
}


def png(width: int, height: int, *, grey: bool = False, seed: int = 0) -> bytes:
    shape = (height, width) if grey else (height, width, 3)
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


# How pictures are prepared


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("grey", [False, True])
def test_pixels_are_what_the_processor_gives(processor: Any, grey: bool) -> None:
    cells = [png(50, 30, grey=grey, seed=seed) for seed in range(2)]
    pictures = Pictures(processor)
    expected = processor([media.image(cell) for cell in cells], return_tensors="pt")
    for _ in range(2):  # decoded, and kept
        pixels, mask = pictures.batch(cells)
        torch.testing.assert_close(pixels, expected["pixel_values"], atol=1e-5, rtol=1e-5)
        assert (mask == 1).all()


def test_pictures_are_kept_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [png(20, 20, seed=0), png(20, 20, grey=True, seed=1), png(20, 20, seed=2)]
    pictures = Pictures(PROCESSORS["vit"], room=4 * 40 * 40)  # one in colours, one in grey
    before = pictures.batch(cells)[0]
    assert pictures.room == 0
    opened: list[bytes] = []
    decode = media.image
    monkeypatch.setattr(media, "image", lambda cell: opened.append(cell) or decode(cell))
    assert torch.equal(pictures.batch(cells)[0], before)
    assert opened == cells[2:]


def test_smaller_pictures_lie_in_the_corner() -> None:
    processor = DetrImageProcessorPil(size={"shortest_edge": 20, "longest_edge": 60})
    cells = [png(40, 20), png(20, 40)]
    pictures = Pictures(processor, padded=True)
    made = processor([media.image(cell) for cell in cells], return_tensors="pt")
    pixels, mask = pictures.batch(cells)
    torch.testing.assert_close(pixels, made["pixel_values"], atol=1e-5, rtol=1e-5)
    assert torch.equal(mask, made["pixel_mask"])
    assert [pictures.size(cell) for cell in cells] == [(20, 40), (40, 20)]


def test_a_processor_of_its_own_kind_is_left_to_itself() -> None:
    class Inverting(ViTImageProcessorPil):
        def normalize(self, image: Any, *args: Any, **options: Any) -> Any:
            return -super().normalize(image, *args, **options)

    processor, cell = Inverting(size={"height": 40, "width": 40}), png(20, 20)
    pictures = Pictures(processor)
    expected = processor([media.image(cell)], return_tensors="pt")["pixel_values"]
    assert torch.equal(pictures.batch([cell])[0], expected)
    assert not pictures._kept


def test_options_stand_for_the_checkpoints_own(tmp_path: Path) -> None:
    task = lookup("image-classification", {"size": 48, **IMAGENET})
    pictures = task.processor(str(written("resnet", tmp_path)))
    assert pictures.batch([png(64, 64)])[0].shape == (1, 3, 48, 48)
    assert list(pictures.processor.image_mean) == IMAGENET["mean"]


@pytest.mark.parametrize("options", [{"size": 0}, {"mean": 0.5}, {"deviation": ["a"]}])
def test_options_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        lookup("image-classification", options)


def test_how_a_checkpoint_takes_pictures_is_not_guessed(tmp_path: Path) -> None:
    folder = written("resnet", tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        lookup("image-classification").processor(str(folder))
    assert lookup("image-classification", IMAGENET).processor(str(folder))


def test_a_model_of_texts_does_not_read_pictures() -> None:
    with pytest.raises(InputError, match="does not read pictures"):
        lookup("image-classification").processor("minilm")


# Batch norms


def test_batch_norms_of_the_base_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(16))
    model(torch.randn(8, 3, 4, 4))
    expected = model.eval()(x := torch.randn(8, 3, 4, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hold_statistics(model)
    torch.testing.assert_close(model.train()(x), expected)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


# Runs


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """digits("012", 30) -> a folder with a folder of so many pictures for each."""
    folder = shared("data", "mnist_t10k")
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8)
        for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    )
    pictures, labels = pixels[16:].reshape(-1, 28, 28), labels[8:]

    def digits(which: str, each: int) -> Path:
        out = tmp_path_factory.mktemp("digits")
        for digit in which:
            (out / digit).mkdir()
            for i in np.flatnonzero(labels == int(digit))[:each]:
                Image.fromarray(pictures[i]).save(out / digit / f"{i}.png")
        return out

    return digits


def test_a_transformer_learns_digits(
    quick: Callable[..., Any], digits: Callable[..., Path], tmp_path: Path
) -> None:
    """Real weights: what the head alone reaches, with an adapter on top of it."""
    data = digits("017", 20)
    config = quick(
        task="image-classification",
        model=shared("models", "deit-tiny-patch16-224"),
        data=data,
        task_arg=IMAGENET,
        max_steps=3,
        lr=1e-3,
    )
    metrics = tune(config, quiet=True)
    assert metrics["baselines"]["head"]["value"] >= 0.8
    assert metrics["test"]["value"] >= 0.8
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    new = tmp_path / "new.csv"
    new.write_text("image\n" + "\n".join(str(path) for path in sorted(data.glob("0/*.png"))[:3]))
    told = predict(config.out, str(new))
    assert [one["label"] for one in told].count("0") >= 2
    assert set(told[0]) == {"image", "label", "probability"}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_convolutional_net(
    quick: Callable[..., Any], digits: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    config = quick(
        task="image-classification",
        model=written("resnet", tmp_path),
        data=digits("01", 20),
        method=method,
        target="re:.*convolution" if method == "lora" else None,
        lr=1e-2,
    )
    metrics = tune(config, quiet=True)
    again = evaluate(config.out, None, "test")
    assert again["value"] == metrics["test"]
    assert set(again["metrics"]) == {"macro_f1"}


def test_labels_that_the_run_never_saw(
    quick: Callable[..., Any], digits: Callable[..., Path], tmp_path: Path
) -> None:
    model, data = written("resnet", tmp_path), digits("018", 20)
    for digit in "8":
        (data / digit).rename(tmp_path / digit)
    config = quick(task="image-classification", model=model, data=data, method="full")
    tune(config, quiet=True)
    new = tmp_path / "new.jsonl"
    row = {"image": str(next((tmp_path / "8").iterdir())), "label": "8"}
    new.write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"never saw: \['8'\]"):
        evaluate(config.out, str(new), "test")


def test_a_broken_picture_is_named(
    quick: Callable[..., Any], digits: Callable[..., Path], tmp_path: Path
) -> None:
    data = digits("01", 12)
    broken = next((data / "0").iterdir())
    broken.write_bytes(broken.read_bytes()[:60])
    config = quick(task="image-classification", model=written("resnet", tmp_path), data=data)
    with pytest.raises(InputError, match=broken.name):
        tune(config, quiet=True)
    assert not Path(config.out).exists()
