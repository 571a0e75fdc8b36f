"""Pictures."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import torch
from row import OF_IMAGENET, Make, Row

from rows.pairs import digits
from rows.sound import pretrained
from trimtab.tasks import lookup

_CELLS = 320  # pixels, as the detector was trained
_DIGIT = 32


def deimv2(shared: Path, out: Path) -> None:
    """The authors' weights of COCO under transformers' names, with a processor."""
    from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

    place = shared / "checks" / "load_deimv2.py"
    spec = importlib.util.spec_from_file_location(place.stem, place)
    assert spec is not None
    assert spec.loader is not None
    loading: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loading)
    model = loading.load(str(shared / "models" / "deimv2-atto-coco"))
    model.save_pretrained(out)
    RTDetrImageProcessorPil(size={"height": _CELLS, "width": _CELLS}).save_pretrained(out)


def segformer(shared: Path, out: Path) -> None:
    """A random SegFormer: there are no real weights here, so that only what is trained counts."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    from transformers.models.segformer.image_processing_pil_segformer import (
        SegformerImageProcessorPil,
    )

    torch.manual_seed(0)
    sizes = {"hidden_sizes": [16, 32, 64, 96], "decoder_hidden_size": 64, "depths": [1, 1, 1, 1]}
    model = SegformerForSemanticSegmentation(
        SegformerConfig(**sizes, num_attention_heads=[1, 2, 4, 6], mlp_ratios=[2, 2, 2, 2])
    )
    model.save_pretrained(out)
    SegformerImageProcessorPil(size={"height": 256, "width": 256}).save_pretrained(out)


def resnet(shared: Path, out: Path) -> None:
    """ResNet, 0.2 million parameters: 600 batches of digits of the first half, upside down and in
    negative."""
    from datasets import Dataset
    from PIL import Image
    from transformers import ResNetConfig, ResNetForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    names = list(map(str, range(10)))
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 96],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    for part in (
        ResNetForImageClassification(config),
        ViTImageProcessorPil(size={"height": _DIGIT, "width": _DIGIT}),
    ):
        part.save_pretrained(out)
    pictures, labels = digits(shared / "data")
    cells = []
    for picture in pictures[:5000]:
        file = io.BytesIO()
        Image.fromarray(255 - picture[::-1]).convert("RGB").save(file, "PNG")
        cells.append(file.getvalue())
    rows = Dataset.from_dict({"image": cells, "label": [str(label) for label in labels[:5000]]})
    pretrained(lookup("image-classification"), out, rows, steps=600)


MODELS: dict[str, Make] = {"deimv2-coco": deimv2, "segformer": segformer, "resnet-turned": resnet}
ROWS = {
    "digits": Row(
        *("image-classification", "deit-tiny-patch16-224", "mnist_t10k"),
        options=(*OF_IMAGENET, "--batch-size", "16"),
    ),
    "digits-convolutional": Row(
        *("image-classification", "resnet-turned", "mnist_t10k"),
        methods=("lora", "full"),  # no biases but of batch norms, no blocks that are known
        targets={"lora": "convolutions"},
        rates={"lora": 3e-3, "full": 1e-3},
    ),
    "blood-cells": Row(
        *("own.deimv2:Detection", "deimv2-coco", "bccd_detection"),
        steps=120,
        options=("--batch-size", "4"),
        rates={"lora": 2e-3, "bitfit": 2e-3, "full": 5e-4},
    ),
    "membranes": Row(
        *("image-segmentation", "segformer", "isbi_membrane_segmentation"),
        options=("--batch-size", "4"),
        rates={"lora": 3e-3, "bitfit": 3e-3, "full": 1e-3},
    ),
}
