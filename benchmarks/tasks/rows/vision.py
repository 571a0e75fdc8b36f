"""Pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from row import OF_IMAGENET, Make, Row

_CELLS = 320  # pixels, as the detector was trained


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


MODELS: dict[str, Make] = {"deimv2-coco": deimv2, "segformer": segformer}
ROWS = {
    "digits": Row(
        *("image-classification", "deit-tiny-patch16-224", "mnist_t10k"),
        options=(*OF_IMAGENET, "--batch-size", "16"),
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
