"""Which base is the same base: its dtype does not matter, its values and shapes do."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import cases
import pytest
import torch
from torch import nn

import trimtab
from trimtab.store import fingerprint

BERT = cases.by_name("bert")


def described(model: nn.Module) -> dict[str, dict[str, object]]:
    return fingerprint.describe(model, (), {})


@pytest.mark.parametrize("there", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("here", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", cases.ARCHITECTURES, ids=lambda a: a.name)
def test_one_base_in_every_dtype(
    architecture: cases.Architecture, there: torch.dtype, here: torch.dtype
) -> None:
    one, other = (described(architecture.model().to(dtype)) for dtype in (there, here))
    fingerprint.compare(one, other, "a")


def test_made_in_bf16_and_loaded_in_fp32(tmp_path: Path) -> None:
    model = BERT.model().to(torch.bfloat16)
    cases.perturb(trimtab.attach(model, trimtab.LoRA(), train=["classifier"]))
    trimtab.save(model, tmp_path)
    fresh, batch = BERT.model(), BERT.batch()
    trimtab.load(fresh, tmp_path)
    close = cases.logits(fresh, batch)
    torch.testing.assert_close(close, cases.logits(model, batch).float(), rtol=0.1, atol=0.3)


def test_the_same_model_has_the_same_fingerprint() -> None:
    one, other = described(BERT.model()), described(BERT.model())
    assert fingerprint.fingerprint(one) == fingerprint.fingerprint(other)


@pytest.mark.parametrize("name", ["bert.pooler.dense.weight", "classifier.bias"])
def test_changed_values_change_it(name: str) -> None:
    model = BERT.model()
    before = described(model)
    with torch.no_grad():
        model.get_parameter(name).mul_(1.05)
    after = described(model)
    assert fingerprint.fingerprint(before) != fingerprint.fingerprint(after)
    with pytest.raises(trimtab.AdapterMismatch, match=f"1 of .* parameters, first '{name}'"):
        fingerprint.compare(before, after, "a")


def test_what_the_adapter_brings_is_not_compared() -> None:
    model, name = BERT.model(), "classifier.weight"
    before = fingerprint.describe(model, {name}, {})
    with torch.no_grad():
        model.get_parameter(name).normal_()
    fingerprint.compare(before, described(model), "a")


def test_a_parameter_more_or_less_is_named() -> None:
    both = described(BERT.model())
    less = {name: one for name, one in both.items() if name != "classifier.bias"}
    with pytest.raises(trimtab.AdapterMismatch, match=r"it has no 'classifier\.bias'"):
        fingerprint.compare(both, less, "a")
    with pytest.raises(trimtab.AdapterMismatch, match=r"'classifier\.bias' is unknown"):
        fingerprint.compare(less, both, "a")


@pytest.mark.parametrize("method", [trimtab.Full(), trimtab.Head(), trimtab.LoRA()], ids=str)
def test_training_and_merging_leave_it(method: trimtab.Full, tmp_path: Path) -> None:
    """The base is described as it was, whatever has been done to the model since."""
    model = BERT.model()
    adapter = trimtab.attach(model, method)
    trimtab.save(model, tmp_path / "before")
    cases.perturb(adapter)
    trimtab.merge(model)
    trimtab.save(model, tmp_path / "after")
    files = [tmp_path / when / "adapter.json" for when in ("before", "after")]
    before, after = (json.loads(file.read_text()) for file in files)
    assert before.pop("digest") != after.pop("digest")
    assert before == after


def test_saved_while_merged_at_parts_of_maps_and_at_tensors(tmp_path: Path) -> None:
    """What is remembered of the base are its own values, wherever an edit has changed them."""
    gpt2 = cases.by_name("gpt2")
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    reading = nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    for base, target in ((gpt2.model(), "c_attn[query]"), (reading, "in_proj_weight")):
        model = copy.deepcopy(base)
        cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=2), target))
        trimtab.save(trimtab.merge(model), tmp_path / "a")
        trimtab.load(base, tmp_path / "a")
