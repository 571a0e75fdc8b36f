"""The thirteen models: small, always the same, with outputs and a loss that depend on it all."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from trimtab.testing import ARCHITECTURES, LAYERS, Architecture

EVERY = [*ARCHITECTURES, *(layer.model for layer in LAYERS)]
every = pytest.mark.parametrize("architecture", EVERY, ids=lambda one: one.name)
# What transformers itself leaves out of this forward pass, or never trains.
UNUSED = {
    "xlnet": {"mask_emb", "r_s_bias", "seg_embed"},
    "whisper": {"encoder.embed_positions.weight"},
}


@every
def test_a_model_is_the_same_each_time(architecture: Architecture) -> None:
    one, other = architecture.model(), architecture.model()
    assert one is not other
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    outputs = architecture.outputs(one, architecture.batch())
    assert torch.equal(outputs, architecture.outputs(other, architecture.batch()))
    assert outputs.isfinite().all()
    assert outputs.dtype == torch.float32
    assert not outputs.requires_grad
    assert not one.training


@every
def test_everything_has_a_gradient(architecture: Architecture) -> None:
    model = architecture.model().train()
    architecture.loss(model, architecture.batch()).backward()
    silent = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    }
    excused = UNUSED.get(architecture.name, set())
    assert {name for name in silent if not name.endswith(tuple(excused) or ("-",))} == set()


@every
def test_outputs_do_not_depend_on_chance(architecture: Architecture) -> None:
    """No dropout."""
    model = architecture.model().train()
    first = architecture.outputs(model, architecture.batch())
    assert torch.equal(architecture.outputs(model, architecture.batch()), first)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda one: one.name)
def test_padding_is_there_and_matters(architecture: Architecture) -> None:
    batch, model = architecture.batch(), architecture.model()
    masks = {key for key in batch if key.endswith("attention_mask")}
    if architecture.name == "vit":
        assert not masks
        return
    outputs = architecture.outputs(model, batch)
    for key in masks:
        assert (batch[key] == 0).any()
        changed = {**batch, key: torch.ones_like(batch[key])}
        assert not torch.equal(architecture.outputs(model, changed), outputs)
    assert masks


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda one: one.name)
def test_apart_says_whether_examples_meet(architecture: Architecture) -> None:
    """Another first example changes the second one's outputs, or does not."""
    model, batch = architecture.model(), architecture.batch()
    changed = {
        key: torch.cat([value[1:].flip(-1), value[1:]])
        if key in ("input_ids", "pixel_values", "input_features")
        else value
        for key, value in batch.items()
    }
    before, after = (architecture.outputs(model, one)[1] for one in (batch, changed))
    assert torch.allclose(before, after, atol=1e-5) == architecture.apart


def test_there_are_thirteen() -> None:
    assert len({one.name for one in ARCHITECTURES}) == len(ARCHITECTURES) == 13
    assert all(sum(p.numel() for p in one.model().parameters()) < 60_000 for one in ARCHITECTURES)


def test_importing_builds_nothing() -> None:
    code = "import sys, trimtab.testing; print(*{'transformers', 'peft'} & {*sys.modules})"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert answer.stdout.split() == []
