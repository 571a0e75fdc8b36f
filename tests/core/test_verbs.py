"""attach, activate and detach: what they leave on a model, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import nn

import trimtab
from trimtab.core import watch
from trimtab.core.host import Host
from trimtab.core.method import Method


def traces(model: nn.Module) -> list[str]:
    """Whatever of ours is on a model."""
    found = [name for name, module in model.named_modules() if isinstance(module, Host)]
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        found += [f"{name}: {h}" for h in hooks if getattr(h, "__module__", "") == watch.__name__]
    return found + [key for key in model.__dict__ if "trimtab" in key]


@cases.pairs()
def test_detach_leaves_nothing(method: Method, architecture: cases.Architecture) -> None:
    model, batch = architecture.model(), architecture.batch()
    frozen = next(iter(model.parameters())).requires_grad_(False)
    asking = {name: p.requires_grad for name, p in model.named_parameters()}
    before, modules = cases.state(model), list(model.modules())
    outputs = cases.logits(model, batch)
    cases.perturb(cases.attach(model, method, name="a"))
    cases.perturb(cases.attach(model, trimtab.LoRA(), name="b"))
    assert traces(model)
    trimtab.activate(model, trimtab.Stack("b"))
    cases.logits(model, batch)
    for name in ("a", "b"):
        assert trimtab.detach(model, name) is model
    assert traces(model) == []
    assert len(modules) == len(list(model.modules()))
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    cases.assert_same_state(model, before)
    assert asking == {name: p.requires_grad for name, p in model.named_parameters()}
    assert not frozen.requires_grad
    assert torch.equal(cases.logits(model, batch), outputs)


def test_the_hooks_of_others_stay() -> None:
    model, calls = cases.by_name("bert").model(), []
    query = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    query.register_forward_hook(lambda *_: calls.append("after"))
    query.register_forward_pre_hook(lambda *_: calls.append("before"))
    trimtab.attach(model, trimtab.LoRA())
    cases.logits(model, cases.by_name("bert").batch())
    assert calls == ["before", "after"]
    trimtab.detach(model)
    cases.logits(model, cases.by_name("bert").batch())
    assert calls == ["before", "after"] * 2


PLAN = {"query": trimtab.LoRA(), "value": trimtab.IA3()}
ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"name": "taken"}, trimtab.InputError, "already carries an adapter 'taken'"),
    ({"name": "a.b"}, trimtab.InputError, "letters, digits"),
    ({"name": ""}, trimtab.InputError, "letters, digits"),
    ({"method": PLAN, "to": "query"}, trimtab.InputError, "a plan names its own targets"),
    ({"train": ["clasifier"]}, trimtab.SiteNotFound, "nearest: 'classifier'"),
    ({"to": "qeury"}, trimtab.SiteNotFound, "nearest: 'query'"),
    ({"method": {"query": trimtab.LoRA(), "nowhere": trimtab.LoRA()}}, trimtab.SiteNotFound, "now"),
    ({"to": "classifier", "train": ["classifier"]}, trimtab.SiteNotFound, "nothing is left"),
    ({"method": trimtab.Head(), "to": "query"}, trimtab.InputError, "chooses its parameters"),
    ({"method": trimtab.Full(), "train": ["classifier"]}, trimtab.InputError, "chooses its para"),
]


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "attached"])
@pytest.mark.parametrize(("options", "error", "text"), ERRORS, ids=[text for *_, text in ERRORS])
def test_a_failed_attach_changes_nothing(
    options: dict[str, Any], error: type[Exception], text: str, fresh: bool
) -> None:
    model = cases.by_name("bert").model()
    if not fresh or options.get("name") == "taken":
        cases.perturb(trimtab.attach(model, trimtab.LoRA(), name="taken"))
        cases.perturb(trimtab.attach(model, trimtab.Full(), name="full"))
    before, modules, seen = cases.state(model), list(model.modules()), traces(model)
    asking = [p.requires_grad for p in model.parameters()]
    with pytest.raises(error, match=text):
        trimtab.attach(model, **{"method": trimtab.LoRA(), "name": "new", **options})
    cases.assert_same_state(model, before)
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert traces(model) == seen
    assert asking == [p.requires_grad for p in model.parameters()]


def test_a_plan() -> None:
    model = cases.by_name("bert").model()
    adapter = trimtab.attach(model, {"layer.0.*": trimtab.LoRA(rank=2), "attention": PLAN["value"]})
    for site, delta in adapter.deltas():
        assert delta.method == (trimtab.LoRA(rank=2) if "layer.0" in site else trimtab.IA3())
    assert {site.split(".layer.")[1][0] for site, _ in adapter.deltas()} == {"0", "1"}


class Wrapped(nn.Module):
    """As data parallelism does it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


WRAPPERS = [Wrapped, nn.DataParallel, compiled, lambda model: compiled(Wrapped(model))]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["module", "parallel", "compiled", "both"])
def test_the_verbs_see_through_wrappers(wrap: Any) -> None:
    model, batch = cases.by_name("bert").model(), cases.by_name("bert").batch()
    base = cases.state(model)
    adapter = trimtab.attach(model, trimtab.LoRA())
    cases.perturb(adapter)
    wrapped = wrap(model)
    assert trimtab.summary(wrapped).name == "default"
    assert trimtab.parameters(wrapped) == adapter.parameters()
    trimtab.attach(wrapped, trimtab.IA3(), name="second")
    trimtab.activate(wrapped, "default")
    adapted = cases.logits(model, batch)
    trimtab.merge(wrapped)
    torch.testing.assert_close(cases.logits(model, batch), adapted, rtol=1e-4, atol=1e-4)
    trimtab.unmerge(wrapped)
    trimtab.detach(wrapped, "second")
    trimtab.detach(wrapped)
    cases.assert_same_state(model, base)


def test_a_child_called_module_is_no_wrapper() -> None:
    model = Wrapped(nn.Linear(4, 4))
    trimtab.attach(model, trimtab.LoRA(rank=2), "module")
    assert isinstance(model.module, Host)
    trimtab.merge(model)


def test_verbs_without_an_adapter() -> None:
    model = cases.by_name("bert").model()
    for verb in (trimtab.merge, trimtab.unmerge, trimtab.detach, trimtab.summary):
        with pytest.raises(trimtab.StateError, match="attach or load one first"):
            verb(model)


def test_print_shows_the_hosts() -> None:
    model = cases.by_name("bert").model()
    trimtab.attach(model, trimtab.LoRA(rank=3), "query", name="mine")
    shown = str(model)
    assert "(query): Host(" in shown
    assert "base: Linear(in_features=32, out_features=32, bias=True)" in shown
    assert "(mine)" in shown
    assert "A: (3, 32), B: (32, 3)" in shown


def test_a_host_answers_for_its_base() -> None:
    model = cases.by_name("bert").model()
    query = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    trimtab.attach(model, trimtab.LoRA(), "query")
    host: Any = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    assert (host.in_features, host.out_features) == (32, 32)
    assert host.weight is query.weight
    host.weight = nn.Parameter(torch.zeros(32, 32))
    assert query.weight is host.weight
    host.in_features = 31
    assert query.in_features == 31
    with pytest.raises(AttributeError, match="nonsense"):
        _ = host.nonsense
    model.train()
    assert query.training
    assert all(module.training for module in host.modules())


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("lroa", {}, "no method is called 'lroa'; nearest: .*'lora'"),
        ("lora", {"rnk": 8}, "lora has no hyper-parameter 'rnk'; nearest: 'rank'"),
        ("lora", {"rank": "8"}, r"rank must be int \(default 8\), not '8'"),
        ("lora", {"rank": 8.0}, "rank must be int"),
        ("lora", {"rank": True}, "rank must be int"),
        ("lora", {"rslora": 1}, "rslora must be bool"),
        ("lora", {"alpha": "high"}, "alpha must be float"),
        ("lora", {"rank": 0}, "rank must be at least 1"),
        ("lora", {"dropout": 1.0}, "dropout must lie in"),
        ("ia3", {"scales": "both"}, "scales must be one of auto, input, output"),
    ],
)
def test_wrong_hyper_parameters(name: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(trimtab.InputError, match=text):
        trimtab.core.registry.build(name, arguments)


@pytest.mark.parametrize("method", cases.METHODS, ids=lambda m: m.name)
def test_arguments_build_the_method_again(method: Method) -> None:
    assert trimtab.core.registry.build(method.name, method.arguments()) == method
    assert trimtab.core.registry.build("lora", {"alpha": 3}).arguments()["alpha"] == 3


def test_what_was_loaded_for_inference_says_so_where_it_is_to_train(tmp_path: Path) -> None:
    model = cases.by_name("bert").model()
    trimtab.attach(model, trimtab.LoRA())
    trimtab.save(model, tmp_path)
    model = cases.by_name("bert").model()
    trimtab.load(model, tmp_path)
    with pytest.warns(UserWarning, match="nothing trains: 'default' was loaded"):
        assert trimtab.parameters(model) == []
