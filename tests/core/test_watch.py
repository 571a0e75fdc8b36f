"""What is watched while a model runs: sites that are never called, and strided inputs."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core.host import Host


class Reader(nn.Module):
    """Uses its child's weight without calling the child."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.called = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.called(x), self.read.weight)


def test_a_site_that_is_never_called_raises() -> None:
    model = nn.Sequential(Reader())
    trimtab.attach(model, trimtab.LoRA(rank=2), ["read", "called"])
    for _ in range(2):  # again, not only once
        with pytest.raises(trimtab.StateError, match=r"Reader ran without calling '0\.read'"):
            model(torch.randn(2, 4))
    trimtab.activate(model, None)
    model(torch.randn(2, 4))


def test_it_raises_for_an_adapter_that_was_not_the_first_to_run() -> None:
    model = nn.Sequential(Reader())
    trimtab.attach(model, trimtab.LoRA(rank=2), "read", name="first")
    trimtab.attach(model, trimtab.LoRA(rank=2), "called", name="second")
    model(torch.randn(2, 4))
    trimtab.activate(model, "first")
    with pytest.raises(trimtab.StateError, match=r"'0\.read'"):
        model(torch.randn(2, 4))
    trimtab.detach(model, "first")
    trimtab.activate(model, "second")
    model(torch.randn(2, 4))
    assert not model[0]._forward_hooks


def test_a_site_that_is_called_is_watched_no_more() -> None:
    model = nn.Sequential(Reader())
    trimtab.attach(model, trimtab.LoRA(rank=2), "called")
    assert len(model[0]._forward_hooks) == 1
    model(torch.randn(2, 4))
    assert len(model[0]._forward_hooks) == 0


@pytest.mark.parametrize("target", ["out_proj", "in_proj_weight", "linear1", "all-linear"])
@pytest.mark.parametrize("training", [False, True], ids=["fast path", "training"])
def test_parents_that_read_weights_themselves_are_called_with_other_ones(
    target: str, training: bool
) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(layer, nn.Linear(8, 2)).train(training)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        base = model(x)
        adapter = trimtab.attach(model, trimtab.LoRA(rank=2), target)
        torch.testing.assert_close(model(x), base)
        cases.perturb(adapter)
        adapted = model(x)
        cases.assert_differs(adapted, base)
        trimtab.merge(model)
        torch.testing.assert_close(model(x), adapted)
        trimtab.unmerge(model)
        trimtab.detach(model)
        assert torch.equal(model(x), base)


class Seen(nn.Linear):
    """Records how the input of its product lies in memory."""

    def __init__(self, *shape: int) -> None:
        super().__init__(*shape)
        self.__dict__["seen"] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.is_contiguous())
        return super().forward(x)


@pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
@pytest.mark.parametrize("method", cases.AFFINE, ids=lambda m: m.name)
def test_a_strided_input_is_made_contiguous_at_a_site(method: Any, merged: bool) -> None:
    model = nn.Sequential(Seen(6, 5))
    x = torch.randn(3, 4, 6)[:, -1:, :]
    assert not x.is_contiguous()
    expected = model(x)
    try:
        trimtab.attach(model, method, "0")
    except trimtab.SiteNotFound as error:
        pytest.skip(str(error))
    model[0].base.seen.clear()
    if merged:
        trimtab.merge(model)
    if method.starts_at_base is None:
        torch.testing.assert_close(model(x), expected)
    else:
        model(x)
    assert model[0].base.seen == [True]


@pytest.mark.parametrize("where", ["site", "inactive", "merged", "elsewhere", "detached"])
def test_no_frozen_linear_multiplies_a_strided_input(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a site that acts, that does not, that is merged, or was one; and where there is none."""
    model = nn.Sequential(nn.Linear(6, 5))
    trimtab.attach(model, trimtab.LoRA(rank=2), "0", name="first")
    if where in ("elsewhere", "detached"):
        model.append(nn.Identity())
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5))
        trimtab.attach(model, trimtab.LoRA(rank=2), "1", name="first")
    if where == "detached":
        trimtab.attach(model, trimtab.LoRA(rank=2), "0", name="second")
        trimtab.detach(model, "second")
        trimtab.activate(model, "first")
        assert not isinstance(model[0], Host)
    if where == "inactive":
        trimtab.activate(model, None)
    if where == "merged":
        trimtab.merge(model)
    seen, product = [], nn.functional.linear

    def linear(x: Tensor, *args: Any) -> Tensor:
        seen.append(x.is_contiguous())
        return product(x, *args)

    monkeypatch.setattr(nn.functional, "linear", linear)
    model(torch.randn(3, 4, 6)[:, -1:, :])
    assert seen
    assert all(seen)


def test_a_vision_model_trains_under_reentrant_checkpointing() -> None:
    """transformers asks for gradients at the embedding of token models only."""
    import transformers as hf

    config = hf.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=8, patch_size=4, hidden_dropout_prob=0.0,
    )  # fmt: skip
    model: Any = hf.ViTForImageClassification(config).train()
    cases.perturb(trimtab.attach(model, trimtab.LoRA(), "attention"))
    batch = {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 1])}
    cases.loss(model, batch).backward()
    expected = {name: g.clone() for name, g in cases.gradients(model).items()}
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": True})
    cases.loss(model, batch).backward()
    assert cases.gradients(model).keys() == expected.keys()
    for name, gradient in cases.gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
