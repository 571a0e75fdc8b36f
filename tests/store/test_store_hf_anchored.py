"""HF PEFT's files of which the factors are relative to a changed base, or say how they began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cases
import peft
import pytest
import torch

import trimtab

BERT = cases.by_name("bert")
QV = ["query", "value"]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"value": 2}}]
)
def test_files_that_are_relative_to_a_base_load(
    peft_writes: Any, start: str, options: dict[str, Any], tmp_path: Path
) -> None:
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=QV, init_lora_weights=start, **options
    )
    theirs = peft_writes(BERT, config)
    model = BERT.model().eval()
    before = cases.logits(model, BERT.batch())
    adapter = trimtab.load(model, theirs.folder)
    found = cases.logits(model, BERT.batch())
    torch.testing.assert_close(found, theirs.logits, rtol=1e-4, atol=1e-5)
    cases.assert_differs(before, found)
    assert all(method.anchored for _, method in adapter.entries)
    trimtab.save(model, tmp_path / "ours", format="peft")
    saved = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"]) == (6, 10) or options.get("use_rslora")


def test_such_a_file_needs_the_bases_own_weights(peft_writes: Any) -> None:
    config = peft.LoraConfig(r=3, target_modules=QV, init_lora_weights="pissa")
    theirs = peft_writes(BERT, config)
    model = BERT.model()
    trimtab.attach(model, trimtab.Full(), name="all")
    with pytest.raises(trimtab.StateError, match="'all' has changed"):
        trimtab.load(model, theirs.folder, name="theirs")


@pytest.mark.parametrize("start", ["eva", "mica", "orthogonal"])
def test_starts_that_leave_the_base_alone_load(peft_writes: Any, start: str) -> None:
    theirs = peft_writes(BERT, peft.LoraConfig(r=4, target_modules=QV))
    file = theirs.folder / "adapter_config.json"
    said = {"init_lora_weights": start, "eva_config": {"rho": 2.0}}
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    model = BERT.model().eval()
    trimtab.load(model, theirs.folder)
    torch.testing.assert_close(cases.logits(model, BERT.batch()), theirs.logits)


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights:UserWarning")
def test_a_converted_file_of_hf_peft_is_plain(tmp_path: Path) -> None:
    """Their own conversion to twice the rank computes what our anchor does."""
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=QV, init_lora_weights="pissa")
    theirs = peft.get_peft_model(BERT.model().eval(), config)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    expected = cases.logits(theirs, BERT.batch())
    theirs.save_pretrained(tmp_path / "raw")
    theirs.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    for folder in ("raw", "plain"):
        model = BERT.model().eval()
        trimtab.load(model, tmp_path / folder)
        found = cases.logits(model, BERT.batch())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("now", [4.0, 7.0, 1.5, -2.0])
def test_deloras_start_is_a_half_of_its_file(now: float, tmp_path: Path) -> None:
    """Whatever became of the strength: the start keeps the one that it had."""
    model = BERT.model().eval()
    before = cases.logits(model, BERT.batch())
    adapter = trimtab.attach(model, trimtab.DeLoRA(rank=3, strength=4.0), QV)
    torch.testing.assert_close(cases.logits(model, BERT.batch()), before, rtol=0, atol=0)
    cases.perturb(adapter, by=0.05)
    for delta in adapter.members:
        delta.tensors()["strength"].data.fill_(now)
    found = cases.logits(model, BERT.batch())
    cases.assert_differs(before, found)
    trimtab.save(model, tmp_path, format="peft")
    there = peft.PeftModel.from_pretrained(BERT.model(), tmp_path).eval()
    assert there.peft_config["default"].r == 6
    torch.testing.assert_close(cases.logits(there, BERT.batch()), found, rtol=1e-4, atol=1e-5)
    again = BERT.model().eval()
    trimtab.load(again, tmp_path)
    torch.testing.assert_close(cases.logits(again, BERT.batch()), found, rtol=1e-4, atol=1e-5)
