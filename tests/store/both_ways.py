"""HF PEFT's folders there and back, with HF PEFT itself as the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import cases
import peft
import torch
from safetensors.torch import load_file
from torch import nn

import trimtab

Writes = Callable[[cases.Architecture, Any], Any]
PLACES = {"target_modules", "modules_to_save", "rank_pattern", "base_model_name_or_path"} | {
    *("task_type", "inference_mode", "total_step", "trainable_token_indices", "peft_version"),
}
"""What says the same in other words, or depends on how it was made."""
TWICE = (".original_module.bias", ".modules_to_save.bias")  # beside the module's own


def loaded(folder: Path, architecture: cases.Architecture) -> nn.Module:
    model = architecture.model()
    trimtab.load(model, folder)
    return model


def by_peft(folder: Path, architecture: cases.Architecture) -> nn.Module:
    model = peft.PeftModel.from_pretrained(architecture.model(), folder).eval()
    if isinstance(model.base_model, peft.AdaLoraModel):  # which asks for it to compute a loss
        model.base_model.trainable_adapter_name = "default"
    return model


def there_and_back(
    architecture: cases.Architecture, config: Any, peft_writes: Writes, tmp_path: Path
) -> None:
    """Their file computes the same here; written again it holds the same, and computes the same
    there.
    """
    theirs = peft_writes(architecture, config)
    batch = theirs.architecture.batch()
    model = loaded(theirs.folder, theirs.architecture)
    cases.assert_differs(theirs.logits, cases.logits(theirs.architecture.model(), batch))
    torch.testing.assert_close(cases.logits(model, batch), theirs.logits, rtol=1e-5, atol=1e-5)

    ours = trimtab.save(model, tmp_path / "ours", format="peft")
    one, other = (load_file(f / "adapter_model.safetensors") for f in (theirs.folder, ours))
    one = {key: tensor for key, tensor in one.items() if not key.endswith(TWICE)}
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype
        shifted = getattr(config, "bias", "none") != "none" and key.endswith("bias")
        torch.testing.assert_close(tensor, other[key], rtol=0, atol=1e-6 if shifted else 0)
    there = cases.logits(by_peft(ours, theirs.architecture), batch)
    torch.testing.assert_close(there, theirs.logits, rtol=1e-5, atol=1e-5)
    again = loaded(ours, theirs.architecture)
    torch.testing.assert_close(
        cases.logits(again, batch), cases.logits(model, batch), rtol=1e-6, atol=1e-6
    )


def configurations(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(theirs, ours) after `there_and_back`: ours has no field that theirs has not."""
    theirs, ours = (
        json.loads((tmp_path / folder / "adapter_config.json").read_text())
        for folder in ("theirs", "ours")
    )
    assert ours.keys() <= theirs.keys()
    return theirs, ours


def assert_same_fields(
    theirs: dict[str, Any], ours: dict[str, Any], but: Collection[str] = PLACES
) -> None:
    for field in ours.keys() - set(but):
        assert ours[field] == theirs[field], field
