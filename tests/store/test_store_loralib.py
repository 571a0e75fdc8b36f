"""loralib's checkpoints, whose law is written out here from its paper and documented shapes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core.adapter import carries
from trimtab.store import loralib
from trimtab.store.files import read_state_dict

GPT2 = cases.by_name("gpt2")
BERT = cases.by_name("bert")
RANK, ALPHA = 3, 7.0


def noise(*shape: int) -> Tensor:
    return 0.3 * torch.randn(shape)


def fused(model: nn.Module, enabled: list[bool]) -> tuple[dict[str, Tensor], nn.Module]:
    """A state dict of MergedLinear at every c_attn, and the model with its update merged by hand:
    each enabled part of 32 rows has its own A (rank, in) and B (32, rank).
    """
    state = {}
    for name, module in model.named_modules():
        if name.endswith("c_attn"):
            on = [part for part, one in enumerate(enabled) if one]
            A, B = noise(RANK * len(on), 32), noise(32 * len(on), RANK)
            state |= {f"{name}.lora_A": A, f"{name}.lora_B": B}
            for at, part in enumerate(on):
                rows = slice(32 * part, 32 * part + 32)
                delta = B[32 * at : 32 * at + 32] @ A[RANK * at : RANK * at + RANK]
                with torch.no_grad():
                    module.weight[:, rows] += ALPHA / RANK * delta.T
    return state, model


@pytest.mark.parametrize(
    "enabled",
    [[True, False, True], [True, True, True], [False, True, False]],
    ids=["q and v", "all", "k"],
)
def test_a_fused_map(enabled: list[bool], tmp_path: Path) -> None:
    state, merged = fused(GPT2.model(), enabled)
    torch.save(state, tmp_path / "lora.pt")
    model = GPT2.model()
    adapter = loralib.load(model, tmp_path / "lora.pt", alpha=ALPHA, enabled=enabled)
    here, there = (cases.logits(one, GPT2.batch()) for one in (model, merged))
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
    assert adapter.name == "loralib"
    assert not any(parameter.requires_grad for parameter in adapter.parameters())


def plain() -> tuple[dict[str, Tensor], nn.Module]:
    """LoRA at every query and value of BERT, its biases, and a head trained whole."""
    merged, state = BERT.model(), {}
    for name, module in merged.named_modules():
        if name.endswith(("query", "value")):
            A, B, bias = noise(RANK, 32), noise(32, RANK), noise(32)
            state |= {f"{name}.lora_A": A, f"{name}.lora_B": B, f"{name}.bias": bias}
            with torch.no_grad():
                module.weight += ALPHA / RANK * B @ A
                module.bias.copy_(bias)
    with torch.no_grad():
        merged.classifier.weight.copy_(noise(3, 32))
        merged.classifier.bias.copy_(noise(3))
    state |= {f"classifier.{key}": t.clone() for key, t in merged.classifier.state_dict().items()}
    return state, merged


def loads_like(state: dict[str, Tensor], merged: nn.Module, path: Path, **options: Any) -> None:
    torch.save(state, path)
    model = BERT.model()
    loralib.load(model, path, alpha=ALPHA, **options)
    here, there = (cases.logits(one, BERT.batch()) for one in (model, merged))
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)


def test_plain_maps_biases_and_a_head(tmp_path: Path) -> None:
    state, merged = plain()
    loads_like(state, merged, tmp_path / "lora.pt")
    loads_like({f"module.{k}": t for k, t in state.items()}, merged, tmp_path / "parallel.pt")
    loads_like({**BERT.model().state_dict(), **state}, merged, tmp_path / "whole.pt")


def test_saved_again_in_our_format_and_in_hf_pefts(tmp_path: Path) -> None:
    state, merged = plain()
    torch.save(state, tmp_path / "lora.pt")
    model = BERT.model()
    loralib.load(model, tmp_path / "lora.pt", alpha=ALPHA, name="old", trainable=True)
    assert trimtab.parameters(model)
    for format in ("trimtab", "peft"):
        folder, fresh = tmp_path / format, BERT.model()
        trimtab.save(model, folder, format=format)
        trimtab.load(fresh, folder)
        there = cases.logits(merged, BERT.batch())
        torch.testing.assert_close(cases.logits(fresh, BERT.batch()), there, rtol=1e-5, atol=1e-5)


QUERY = "bert.encoder.layer.0.attention.self.query"
WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], object], dict[str, Any], str]] = {
    "no B": (lambda s: s.pop(f"{QUERY}.lora_B"), {}, "has no .*lora_B' beside it"),
    "no A": (lambda s: s.pop(f"{QUERY}.lora_A"), {}, "has no .*lora_A' beside it"),
    "nowhere": (lambda s: s.update({"x.lora_A": torch.ones(2, 2)}), {}, "'x', which this model"),
    "vector": (lambda s: s.update({f"{QUERY}.lora_A": torch.ones(3)}), {}, "must be matrices"),
    "another input": (
        lambda s: s.update({f"{QUERY}.lora_A": torch.ones(3, 31)}),
        {},
        r"shape \(3, 31\), and must have \(3, 32\)",
    ),
    "fused, not said": (
        lambda s: s.update({f"{QUERY}.lora_B": torch.ones(16, 3)}),
        {},
        r"fused maps.*enabled=\[True, False, True\]",
    ),
    "fused otherwise": (
        lambda s: s.update({f"{QUERY}.lora_B": torch.ones(15, 3)}),
        {"enabled": [True, False]},
        "do not fit enabled",
    ),
    "indivisible": (
        lambda s: s.update({f"{QUERY}.lora_B": torch.ones(15, 3)}),
        {"enabled": [True, False, True]},
        "does not divide",
    ),
    "nothing enabled": (
        lambda s: s.update({f"{QUERY}.lora_B": torch.ones(15, 3)}),
        {"enabled": [False, False]},
        "does not divide",
    ),
    "another base": (
        lambda s: s.update({f"{QUERY}.weight": torch.ones(32, 32)}),
        {},
        "differs from this model's, and has an update beside it",
    ),
    "no such tensor": (
        lambda s: s.update({f"{QUERY}.gain": torch.ones(32)}),
        {},
        "has no tensor 'gain'",
    ),
    "misshapen head": (
        lambda s: s.update({"classifier.bias": torch.ones(2)}),
        {},
        "does not fit here",
    ),
    "no update": (lambda s: [s.pop(k) for k in list(s) if "lora" in k], {}, "holds no lora_A"),
    "not finite": (
        lambda s: s.update({f"{QUERY}.lora_A": torch.full((3, 32), float("nan"))}),
        {},
        "not finite",
    ),
    "alpha": (lambda s: None, {"alpha": float("inf")}, "alpha must be a finite number"),
}


@pytest.mark.parametrize(("change", "options", "match"), WRONG.values(), ids=list(WRONG))
def test_what_does_not_fit(
    change: Callable[[dict[str, Tensor]], object],
    options: dict[str, Any],
    match: str,
    tmp_path: Path,
) -> None:
    state, _ = plain()
    change(state)
    torch.save(state, tmp_path / "lora.pt")
    model = BERT.model()
    with pytest.raises(trimtab.InputError, match=match):
        loralib.load(model, tmp_path / "lora.pt", **{"alpha": ALPHA, **options})
    assert not carries(model)


def test_alpha_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="alpha"):
        loralib.load(BERT.model(), tmp_path / "lora.pt")  # type: ignore[call-arg]


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for name, write in {
        "zip": lambda path: torch.save({"a": Trap(trace)}, path),
        "raw": lambda path: path.write_bytes(pickle.dumps(Trap(trace))),
    }.items():
        path = tmp_path / f"{name}.pt"
        write(path)
        with pytest.raises(trimtab.InputError, match="holds more than tensors"):
            loralib.load(BERT.model(), path, alpha=1.0)
    assert not trace.exists()


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "lora.pt"
    with pytest.raises(trimtab.InputError, match="is no file that"):
        read_state_dict(path)
    path.write_bytes(b"")
    with pytest.raises(trimtab.InputError, match="is no whole state dict"):
        read_state_dict(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(trimtab.InputError, match="must hold a state dict"):
        read_state_dict(path)
    torch.save({"x": 1}, path)
    with pytest.raises(trimtab.InputError, match="must hold a state dict"):
        read_state_dict(path)
