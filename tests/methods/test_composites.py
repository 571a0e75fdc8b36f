"""Names for several methods: mix-and-match adapters and UniPELT, whose gates read the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trimtab
from trimtab.capabilities import capabilities
from trimtab.core.method import Composite
from trimtab.core.registry import lookup

COMPOSITES = [name for name, cls in trimtab.methods().items() if issubclass(cls, Composite)]
SMALL: dict[str, dict[str, Any]] = {
    "mam": {"length": 2, "width": 4},
    "unipelt": {"length": 2, "width": 4, "rank": 2},
}
composites = pytest.mark.parametrize("name", COMPOSITES)


def moved(method: Any, name: str = "bert", by: float = 0.3) -> tuple[nn.Module, dict[str, Tensor]]:
    model = cases.by_name(name).model()
    cases.perturb(trimtab.attach(model, method), by=by)
    batch = cases.by_name(name).batch()
    batch.pop("labels")
    return model, batch


@composites
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_composite_is_its_parts(name: str, architecture: str) -> None:
    method: Any = lookup(name)(**SMALL[name])
    torch.manual_seed(0)
    one, batch = moved(method, architecture)
    torch.manual_seed(0)
    other, _ = moved(list(method.parts()), architecture)
    assert torch.equal(cases.logits(one, batch), cases.logits(other, batch))
    adapter = one._trimtab.adapter("default")  # type: ignore[union-attr]
    assert {m.name for _, m in adapter.entries} == {part.name for part in method.parts()}


@composites
def test_its_files_hold_the_parts(name: str, tmp_path: Path) -> None:
    model, batch = moved(lookup(name)(**SMALL[name]))
    trimtab.save(model, tmp_path)
    again = cases.by_name("bert").model()
    adapter = trimtab.load(again, tmp_path)
    assert torch.equal(cases.logits(again, batch), cases.logits(model, batch))
    assert name not in {method.name for _, method in adapter.entries}


@composites
def test_a_composite_names_its_own_targets(name: str) -> None:
    model = cases.by_name("bert").model()
    method: Any = lookup(name)(**SMALL[name])
    with pytest.raises(trimtab.InputError, match="a target each: give a plan"):
        trimtab.attach(model, method, "attention")
    with pytest.raises(trimtab.InputError, match=f"{name} stands for several methods .* parts"):
        trimtab.attach(model, {"attention": method})
    trimtab.attach(model, method)
    with pytest.raises(trimtab.StateError, match="changes no weights"):
        trimtab.merge(model)
    trimtab.detach(model)
    trimtab.attach(model, [method, trimtab.BitFit()])
    assert "bitfit" in trimtab.summary(model).methods


@composites
def test_its_row_in_the_table(name: str) -> None:
    row = capabilities(lookup(name)())
    assert row["kind"] == "composite"
    assert not row["mergeable"]
    assert row["routable"]
    assert {"self-attention", "mlp-output"} <= set(row["targets"])
    assert "attention" in row["layers"]
    assert "2 blocks" in row["parameters_at"]


def test_a_wrong_part_is_refused_when_the_composite_is_made() -> None:
    with pytest.raises(trimtab.InputError, match="parallel: width must be at least 1"):
        trimtab.MAM(width=0)
    with pytest.raises(trimtab.InputError, match="gated-prefix: length must be at least 1"):
        trimtab.UniPELT(length=0)


def by_hand(p: Any, x: Tensor, mask: Tensor) -> Tensor:
    """The gate of each example, (batch, 1, 1)."""
    open_ = torch.sigmoid(x @ p.w + p.w0)
    return torch.stack([open_[i, real.bool()].mean() for i, real in enumerate(mask)])[:, None, None]


@pytest.mark.parametrize(
    ("method", "site"),
    [
        (trimtab.GatedLoRA(rank=2), "bert.encoder.layer.1.attention.self.query"),
        (trimtab.GatedAdapter(width=4), "bert.encoder.layer.1.output.dense"),
    ],
    ids=["lora", "adapter"],
)
def test_a_gate_is_the_mean_of_what_it_reads(method: Any, site: str) -> None:
    model, batch = moved(method)
    seen: dict[str, Tensor] = {}
    host: Any = model.get_submodule(site)

    def keep(module: Any, args: Any, y: Tensor) -> None:
        seen.update(x=args[0], y=y)

    host.register_forward_hook(keep)
    cases.logits(model, batch)
    p, x = host.stack("default")[method.name], seen["x"]
    y = host.base(x)
    if method.name == "gated-lora":
        gate, change = by_hand(p, x, batch["attention_mask"]), 8 * F.linear(F.linear(x, p.A), p.B)
    else:
        gate = by_hand(p, y, batch["attention_mask"])
        change = F.linear(F.relu(F.linear(y, p.D, p.d)), p.U, p.u)
    assert 0 < gate.min() < gate.max() < 1
    torch.testing.assert_close(seen["y"], y + gate * change)


def test_a_prefix_behind_a_gate() -> None:
    """Of one example: as a prefix whose keys and values are multiplied by the gate."""
    model, batch = moved(trimtab.GatedPrefix(length=2))
    one = {key: tensor[:1, :5] for key, tensor in batch.items()}
    plain = cases.by_name("bert").model()
    own = model._trimtab.adapter("default").deltas()  # type: ignore[union-attr]
    same = trimtab.attach(plain, trimtab.PrefixTuning(length=2)).deltas()
    gates = []
    for (site, p), (_, q) in zip(own, same, strict=True):

        def put(module: Any, args: Any, p: Any = p, q: Any = q) -> None:
            g = by_hand(p, args[0], one["attention_mask"])[0]
            gates.append(float(g))
            with torch.no_grad():
                q.K.copy_(g * p.K)
                q.V.copy_(g * p.V)

        plain.get_submodule(site).register_forward_pre_hook(put, prepend=True)
    torch.testing.assert_close(cases.logits(plain, one), cases.logits(model, one))
    assert len(set(gates)) == 2
    assert model._trimtab.switch.call.taps == {}  # type: ignore[union-attr]


def test_gates_see_no_padding_and_no_other_example() -> None:
    model, batch = moved(trimtab.UniPELT(**SMALL["unipelt"]))
    both = cases.logits(model, batch)
    for row in range(2):
        real = int(batch["attention_mask"][row].sum())
        start = int(batch["attention_mask"][row].argmax())
        alone = {k: t[[row], start : start + real] for k, t in batch.items()}
        torch.testing.assert_close(both[[row]], cases.logits(model, alone), rtol=1e-4, atol=1e-5)


def test_gates_and_routes_and_stacks() -> None:
    model, batch = moved(trimtab.UniPELT(**SMALL["unipelt"]))
    small = SMALL["unipelt"] | {"length": 1}
    cases.perturb(trimtab.attach(model, trimtab.UniPELT(**SMALL["unipelt"]), name="other"), seed=3)
    cases.perturb(trimtab.attach(model, trimtab.UniPELT(**small), name="short"), seed=4)
    alone = {}
    for name in ("default", "other"):
        trimtab.activate(model, name)
        alone[name] = cases.logits(model, batch)
    trimtab.activate(model, trimtab.Route("default", "other"))
    with trimtab.given(model, route=["other", "default"]):
        routed = cases.logits(model, batch)
    expected = torch.stack([alone["other"][0], alone["default"][1]])
    torch.testing.assert_close(routed, expected, rtol=1e-4, atol=1e-5)
    trimtab.activate(model, trimtab.Stack("default", "short"))
    cases.assert_differs(cases.logits(model, batch), alone["default"])


def test_a_gate_reads_all_positions() -> None:
    model, batch = moved(trimtab.UniPELT(**SMALL["unipelt"]), "llama")
    prompt = {"input_ids": batch["input_ids"][:1, :5]}
    with pytest.raises(trimtab.InputError, match="with use_cache=False"):
        model.generate(**prompt, max_new_tokens=3, do_sample=False)  # type: ignore[operator]
    found = model.generate(**prompt, max_new_tokens=3, do_sample=False, use_cache=False)  # type: ignore[operator]
    assert found.shape == (1, 8)
