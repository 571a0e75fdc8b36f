"""An adapter out of the difference of two models: exact at full rank, best at any other, and
nothing left out in silence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

import trimtab
from trimtab.combine import extract


def tuned(architecture: cases.Architecture, only: str = "") -> nn.Module:
    """The model after every parameter with this in its name moved."""
    model = architecture.model().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit", "albert", "bart"])
def test_at_full_rank_it_is_the_tuned_model(name: str, tmp_path: Path) -> None:
    architecture = cases.by_name(name)
    model, other, batch = architecture.model().eval(), tuned(architecture), architecture.batch()
    expected = cases.logits(other, batch)
    cases.assert_differs(cases.logits(model, batch), expected)
    found = extract(model, other, energy=1.0)
    torch.testing.assert_close(cases.logits(model, batch), expected, rtol=1e-4, atol=1e-5)
    assert found.dropped == ()
    assert max(found.missing.values()) < 1e-3
    assert found.adapter is model._trimtab.adapter("extracted")
    trimtab.save(model, tmp_path / "extracted")
    again = architecture.model().eval()
    trimtab.load(again, tmp_path / "extracted")
    torch.testing.assert_close(cases.logits(again, batch), cases.logits(model, batch))


def mixtral() -> nn.Module:
    """Its experts are matrices of one tensor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "head_dim": 8}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
        return MixtralForCausalLM(MixtralConfig(**shape, **heads, num_hidden_layers=1)).eval()


def test_experts_start_are_extracted_and_combined() -> None:
    model, other, ids = mixtral(), mixtral(), torch.randint(0, 50, (2, 6))
    before = model(ids).logits
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2))
    trimtab.init.pissa(model)
    assert {delta.A.shape[0] for _, delta in adapter.deltas() if delta.site.geometry.count} == {4}
    assert torch.equal(model(ids).logits, before)
    trimtab.detach(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    expected = other(ids).logits
    extract(model, other, energy=1.0, name="full")
    for method, options in {"svd": {"rank": 16}, "cat": {}, "linear": {}}.items():
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)
        trimtab.combine.adapters(model, {"full": 1.0}, into=method, method=method, **options)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_what_a_module_reads_itself_may_have_no_copy() -> None:
    architecture = cases.by_name("xlnet")
    model, other = architecture.model(), tuned(architecture)
    with pytest.raises(trimtab.InputError, match=r"cannot be kept.*rel_attn\.r_r_bias"):
        extract(model, other, rank=2)
    found = extract(model, other, rank=2, rest="drop")
    assert "transformer.layer.0.rel_attn.r_r_bias" in found.dropped
    assert any("rel_attn" in site for site in found.ranks)


def test_of_some_rank_it_is_the_best_of_that_rank() -> None:
    architecture = cases.by_name("bert")
    model, other = architecture.model(), tuned(architecture, "attention.self.query.weight")
    found = extract(model, other, rank=3)
    for site, delta in found.adapter.deltas():
        D = other.get_submodule(site).weight - model.get_submodule(site).weight
        U, S, V = torch.linalg.svd(D)
        change = delta.method.scale * delta.B @ delta.A
        torch.testing.assert_close(change, U[:, :3] * S[:3] @ V[:3], rtol=1e-3, atol=1e-5)
        share = ((D - change).norm() / D.norm()).item()
        assert abs(found.missing[site] - share) < 1e-4
    assert set(found.ranks.values()) == {3}
    assert "6 ranks at 2 sites" in str(found)


def test_energy_takes_as_small_a_rank_as_holds_it() -> None:
    model, other = nn.Sequential(nn.Linear(12, 8)), nn.Sequential(nn.Linear(12, 8))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        U, _ = torch.linalg.qr(torch.randn(8, 8))
        V, _ = torch.linalg.qr(torch.randn(12, 12))
        S = torch.tensor([2.0, 1.0, 1.0])
        other[0].weight += U[:, :3] * S @ V[:3]
    for energy, rank in ((0.5, 1), (2 / 3, 1), (0.7, 2), (5 / 6, 2), (0.9, 3), (1.0, 3)):
        found = extract(model, other, energy=energy, to="0")
        assert found.ranks == {"0": rank} or energy == 1.0
        torch.testing.assert_close(
            found.missing["0"],
            max(0, 1 - [4, 5, 6][min(rank, 3) - 1] / 6) ** 0.5,
            rtol=0,
            atol=2e-3,
        )
        trimtab.detach(model)
    assert extract(model, other, energy=0.9, rank=2, to="0").ranks == {"0": 2}


def test_what_is_dropped_is_named() -> None:
    architecture = cases.by_name("bert")
    model, other = architecture.model(), tuned(architecture)
    found = extract(model, other, rank=4, rest="drop")
    own = dict(model.named_parameters())
    matrices = {f"{site}.weight" for site, _ in found.adapter.entries}
    expected = {name for name in own if ".deltas." not in name} - matrices
    assert set(found.dropped) == expected
    assert found.kept == ()
    assert f"{len(expected)} dropped (bert.embeddings." in str(found)


def test_what_is_kept_is_exact() -> None:
    architecture = cases.by_name("bert")
    model, other = architecture.model(), tuned(architecture)
    found = extract(model, other, rank=4)
    kinds = {site: set() for site, _ in found.adapter.entries}
    for site, method in found.adapter.entries:
        kinds[site].add(method.name)
    assert kinds["bert.encoder.layer.0.attention.self.query"] == {"lora", "bitfit"}
    assert kinds["bert.embeddings.LayerNorm"] == kinds["classifier"] == {"whole"}
    trimtab.merge(model)
    merged = dict(model.named_parameters())
    for name in found.kept:
        torch.testing.assert_close(merged[name], other.get_parameter(name), rtol=1e-6, atol=1e-7)


def test_parts_of_a_fused_map() -> None:
    architecture = cases.by_name("gpt2")
    model, other = architecture.model(), architecture.model()
    width = 32
    with torch.no_grad():
        for block in other.transformer.h:
            block.attn.c_attn.weight[:, :width] += 0.1 * torch.randn(width, width)
    batch = architecture.batch()
    found = extract(model.eval(), other.eval(), energy=1.0, to="c_attn[query]")
    assert all("[query]" in site for site, _ in found.adapter.entries)
    torch.testing.assert_close(
        cases.logits(model, batch), cases.logits(other, batch), rtol=1e-3, atol=1e-4
    )
    trimtab.detach(model)
    with torch.no_grad():
        other.transformer.h[0].attn.c_attn.weight[:, width:] += 0.1
    with pytest.raises(trimtab.InputError, match=r"cannot be kept.*h\.0\.attn\.c_attn\.weight"):
        extract(model, other, rank=2, to="c_attn[query]")
    found = extract(model, other, rank=2, to="c_attn[query]", rest="drop")
    assert found.dropped == ("transformer.h.0.attn.c_attn.weight",)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "how much to hold"),
    "rank": ({"rank": 0}, "rank must be at least 1"),
    "text for a rank": ({"rank": "2"}, "a whole number"),
    "energy": ({"energy": 1.2}, r"energy lie in \(0, 1\]"),
    "rest": ({"rank": 2, "rest": "ignore"}, "not 'ignore'"),
    "target": ({"rank": 2, "to": "qeury"}, "no site matches 'qeury'"),
    "no difference": ({"rank": 2}, "do not differ anywhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    options, message = REFUSED[case]
    architecture = cases.by_name("bert")
    with pytest.raises(trimtab.InputError, match=message):
        extract(architecture.model(), architecture.model(), **options)


def test_models_that_do_not_belong_together() -> None:
    architecture = cases.by_name("bert")
    model = architecture.model()
    state = model.state_dict()
    with pytest.raises(trimtab.AdapterMismatch, match=r"has besides \['extra'\]"):
        extract(model, {**state, "extra": torch.zeros(1)}, rank=2)
    short = {**state, "classifier.bias": torch.zeros(9)}
    with pytest.raises(
        trimtab.AdapterMismatch, match=r"'classifier\.bias' is \(3,\) here and \(9,\)"
    ):
        extract(model, short, rank=2)
    short.pop("classifier.bias")
    with pytest.raises(trimtab.AdapterMismatch, match=r"lacks \['classifier\.bias'\]"):
        extract(model, short, rank=2)


def test_running_statistics_cannot_be_kept() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))

    base, other = model(), model()
    other(torch.randn(8, 4))
    with torch.no_grad():
        other[0].weight += 0.1
    with pytest.raises(trimtab.InputError, match=r"cannot be kept exactly.*1\.running_mean"):
        extract(base, other, rank=2, to="0")
    found = extract(base, other, rank=2, to="0", rest="drop")
    assert found.dropped == ("1.num_batches_tracked", "1.running_mean", "1.running_var")
