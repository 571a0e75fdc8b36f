"""Tiny random models that see, written as a checkpoint is: weights, configuration, processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

SHORT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SHORT |= {"intermediate_size": 32}
EDGES = {"shortest_edge": 48, "longest_edge": 64}


def backbone() -> hf.ResNetConfig:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    return hf.ResNetConfig(**sizes, layer_type="basic", out_features=["stage2"], num_labels=3)


def resnet() -> tuple[Any, Any]:
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=1.0)
    return hf.ResNetForImageClassification(backbone()), processor


def detr() -> tuple[Any, Any]:
    sides = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    no_other = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}
    config = hf.DetrConfig(
        **no_other, **sides, backbone_config=backbone(), num_queries=10, d_model=16
    )
    return hf.DetrForObjectDetection(config), DetrImageProcessorPil(size=EDGES)


def yolos() -> tuple[Any, Any]:
    config = hf.YolosConfig(**SHORT, image_size=[48, 64], patch_size=16, num_detection_tokens=10)
    return hf.YolosForObjectDetection(config), YolosImageProcessorPil(size=EDGES)


def segformer() -> tuple[Any, Any]:
    config = hf.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
    )
    processor = SegformerImageProcessorPil(size={"height": 64, "width": 64})
    return hf.SegformerForSemanticSegmentation(config), processor


MADE = {"resnet": resnet, "detr": detr, "yolos": yolos, "segformer": segformer}


def written(name: str, folder: Path) -> Path:
    """The model's folder below this one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = MADE[name]()
    model.save_pretrained(folder / name)
    processor.save_pretrained(folder / name)
    return folder / name
