"""Compositions as values: what they make of adapters of every kind, alone and by example."""

from __future__ import annotations

import copy
import io
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab import Fuse, Mix, Route, Stack
from trimtab.core.method import Method

KINDS: dict[str, Method] = {
    "lora": trimtab.LoRA(rank=2),
    "ia3": trimtab.IA3(),
    "houlsby": trimtab.Houlsby(width=4),
    "parallel": trimtab.Parallel(width=4),
    "compacter": trimtab.Compacter(width=4),
    "reft": trimtab.ReFT(rank=2, first=2, last=1),
    "coda": trimtab.CoDA(width=4),
}
kinds = pytest.mark.parametrize("kind", KINDS)
architectures = pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])


def carrying(name: str, *methods: Method) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model with adapters a, b, c … of these methods, each moved, and a batch of four."""
    architecture = cases.by_name(name)
    model = architecture.model()
    for seed, (letter, method) in enumerate(zip("abcd", methods, strict=False)):
        cases.perturb(trimtab.attach(model, method, name=letter), seed=seed, by=0.2)
    batch = architecture.batch()
    return model, {key: torch.cat([tensor, tensor.flip(0)]) for key, tensor in batch.items()}


def rows(batch: dict[str, Tensor], index: list[int]) -> dict[str, Tensor]:
    return {key: tensor[index] for key, tensor in batch.items()}


def losses(model: nn.Module, batch: dict[str, Tensor], **given: Any) -> Tensor:
    """A loss that is a sum over examples."""
    return model(**batch, **given).logits.square().sum()


def grads(model: nn.Module) -> dict[str, Tensor]:
    found = {name: grad.clone() for name, grad in cases.gradients(model).items()}
    model.zero_grad()
    return found


ROUTE = ["a", "b", None, "a"]


@kinds
@architectures
def test_routed_examples_equal_one_adapter_at_a_time(kind: str, name: str) -> None:
    model, batch = carrying(name, KINDS[kind], KINDS[kind])
    model.train()
    expected, gradients = torch.empty(0), {}
    for one in ("a", "b", None):
        trimtab.activate(model, one)
        index = [i for i, to in enumerate(ROUTE) if to == one]
        out = model(**rows(batch, index)).logits
        expected = expected if len(expected) else out.new_empty(4, *out.shape[1:])
        expected[index] = out.detach()
        if one:
            out.square().sum().backward()
            gradients |= grads(model)
    trimtab.activate(model, Route("a", "b"))
    found = model(**batch, route=ROUTE).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    routed = grads(model)
    assert routed.keys() == gradients.keys()
    for key, gradient in routed.items():
        away = (gradient - gradients[key]).norm()
        assert away <= 1e-4 * gradients[key].norm() + 1e-5, key
    with trimtab.given(model, route=ROUTE), torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, found.detach())


def test_routes_over_adapters_of_unlike_kinds() -> None:
    model, batch = carrying("llama", KINDS["lora"], KINDS["reft"], KINDS["parallel"])
    route = ["c", "a", "b", None]
    trimtab.activate(model, Route("a", "b", "c"))
    found = cases.logits(model, {**batch, "route": route})  # type: ignore[dict-item]
    for row, one in enumerate(route):
        trimtab.activate(model, one)
        torch.testing.assert_close(found[[row]], cases.logits(model, rows(batch, [row])))


@pytest.mark.parametrize("kind", ["lora", "houlsby", "parallel", "reft"])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_beams_follow_their_example(kind: str, name: str) -> None:
    model, batch = carrying(name, KINDS[kind], KINDS[kind])
    batch.pop("labels")
    batch["input_ids"], batch["attention_mask"] = cases.tokens(4, 6), torch.ones(4, 6).long()
    options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    options |= {"eos_token_id": None, "return_dict_in_generate": True, "output_scores": True}

    def generated(index: list[int]) -> Any:
        return model.generate(**rows(batch, index), **options)  # type: ignore[operator]

    trimtab.activate(model, Route("a", "b"))
    with trimtab.given(model, route=ROUTE):
        together = generated([0, 1, 2, 3])
    for row, one in enumerate(ROUTE):
        trimtab.activate(model, one)
        alone = generated([row])
        assert torch.equal(together.sequences[[row]], alone.sequences)
        score = together.sequences_scores[[row]]
        torch.testing.assert_close(score, alone.sequences_scores, rtol=1e-4, atol=1e-4)


@architectures
def test_a_mix_of_additive_adapters_is_the_sum_of_their_deltas(name: str) -> None:
    model, batch = carrying(name, KINDS["lora"], trimtab.LoRA(rank=3))
    mix = Mix(a=0.7, b=-0.4)
    trimtab.activate(model, mix)
    mixed = cases.logits(model, batch)
    hosts = model._trimtab.adapter("a").hosts  # type: ignore[union-attr]
    host = next(iter(hosts.values()))
    own = host.geometry.read(host.base.weight)
    deltas = {n: host.stack(n)["lora"] for n in ("a", "b")}
    changes = {n: d.method.delta(d.values(torch.float32)) for n, d in deltas.items()}
    expected = own + 0.7 * changes["a"] - 0.4 * changes["b"]
    torch.testing.assert_close(host.operator().weight, expected)
    trimtab.merge(model)
    torch.testing.assert_close(cases.logits(model, batch), mixed, rtol=1e-4, atol=1e-4)
    trimtab.unmerge(model)
    assert torch.equal(cases.logits(model, batch), mixed)


@kinds
def test_a_mix_of_one_is_that_one(kind: str) -> None:
    model, batch = carrying("bert", KINDS[kind], KINDS["lora"])
    trimtab.activate(model, "a")
    alone = cases.logits(model, batch)
    trimtab.activate(model, Mix(a=1.0, b=0.0))
    torch.testing.assert_close(cases.logits(model, batch), alone, rtol=1e-4, atol=1e-5)


def fused(name: str, *methods: Method) -> tuple[nn.Module, dict[str, Tensor]]:
    """Adapters a and b, c if there are three, and a fusion f over the first two."""
    model, batch = carrying(name, *methods)
    cases.perturb(trimtab.attach(model, trimtab.Fusion(over=("a", "b")), name="f"), by=0.05)
    return model, batch


@pytest.mark.parametrize("kind", ["lora", "houlsby", "reft"])
@architectures
def test_a_fusion_trains_alone(kind: str, name: str) -> None:
    model, batch = fused(name, KINDS[kind], KINDS[kind])
    for composition in (Fuse("a", "b", by="f"), "f"):
        trimtab.activate(model, composition)
        losses(model, batch).backward()
        assert {key.split(".deltas.")[1].split(".")[0] for key in grads(model)} == {"f"}
        asking = {id(p) for p in model.parameters() if p.requires_grad}
        assert asking == {id(p) for p in trimtab.parameters(model)}


def test_a_fusion_reads_what_each_adapter_makes() -> None:
    """With V the identity and all scores equal, the mean of the two; at a site, by hand."""
    model, _ = fused("bert", KINDS["houlsby"], KINDS["lora"])
    host = model.bert.encoder.layer[0].output.dense  # type: ignore[union-attr, index]
    delta = host.stack("f")["fusion"]
    with torch.no_grad():
        delta.Q.zero_()
        delta.V.copy_(torch.eye(32))
    x = torch.randn(2, 5, 64)
    outputs = []
    for one in ("a", "b"):
        trimtab.activate(model, one)
        outputs.append(host(x))
    trimtab.activate(model, Fuse("a", "b", by="f"))
    torch.testing.assert_close(host(x), (outputs[0] + outputs[1]) / 2)


def test_a_stack_upon_a_fusion() -> None:
    model, batch = fused("bert", KINDS["houlsby"], KINDS["houlsby"], KINDS["lora"])
    trimtab.activate(model, Fuse("a", "b", by="f"))
    below = cases.logits(model, batch)
    trimtab.activate(model, Stack(Fuse("a", "b", by="f"), "c"))
    cases.assert_differs(cases.logits(model, batch), below)
    losses(model, batch).backward()
    assert {key.split(".deltas.")[1].split(".")[0] for key in grads(model)} == {"c", "f"}
    with torch.no_grad():
        for host in model._trimtab.adapter("c").hosts.values():  # type: ignore[union-attr]
            host.stack("c")["lora"].B.zero_()
    torch.testing.assert_close(cases.logits(model, batch), below)
    with pytest.raises(trimtab.StateError, match="changes no weights"):
        trimtab.merge(model)


@kinds
def test_switching_walks_over_no_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = carrying("bert", KINDS[kind], KINDS[kind])
    inside = (*model.modules(),)

    def walked(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"{type(self).__name__} was walked over")

    held = {id(m) for a in "ab" for m in model._trimtab.adapter(a).members}  # type: ignore[union-attr]
    for walk in ("modules", "named_modules", "parameters", "named_parameters", "children"):
        original = getattr(nn.Module, walk)

        def guarded(self: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            own = id(self) in held or "Tensors" in {c.__name__ for c in type(self).__mro__}
            return original(self, *args, **kwargs) if own else walked(self)

        monkeypatch.setattr(nn.Module, walk, guarded)
    for composition in ("a", Stack("a", "b"), Mix(a=1, b=1), Route("a", "b"), None, "b"):
        trimtab.activate(model, composition)
    with pytest.raises(AssertionError, match="was walked over"):
        list(inside[0].modules())


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COMPOSITIONS = [
    Stack("a", "b"),
    Mix(a=0.5, b=2.0),
    Route("a", "b"),
    Fuse("a", "b", by="f"),
    Stack(Fuse("a", "b", by="f"), "c"),
]
composed = pytest.mark.parametrize("composition", COMPOSITIONS, ids=lambda c: type(c).__name__)


@composed
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=lambda f: f.__name__)
def test_copies_are_whole(composition: trimtab.Stack, copied: Any) -> None:
    model, batch = fused("llama", KINDS["houlsby"], KINDS["reft"], KINDS["lora"])
    if not isinstance(composition, Mix | Route):
        model, batch = fused("llama", KINDS["houlsby"], KINDS["lora"], KINDS["parallel"])
    trimtab.activate(model, composition)
    given: dict[str, Any] = {"route": ROUTE} if isinstance(composition, Route) else {}
    expected = cases.logits(model, {**batch, **given})
    other = copied(model)
    assert torch.equal(cases.logits(other, {**batch, **given}), expected)
    trimtab.activate(other, None)
    assert torch.equal(cases.logits(model, {**batch, **given}), expected)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@composed
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_compositions_compile_without_a_break(composition: trimtab.Stack, name: str) -> None:
    model, batch = fused(name, KINDS["houlsby"], KINDS["lora"], KINDS["parallel"])
    batch.pop("labels")
    trimtab.activate(model, composition)
    with trimtab.given(model, route=ROUTE if isinstance(composition, Route) else None):
        expected = model(**batch).logits
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**batch).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("composition", "message"),
    [
        ("z", "no adapter is called 'z'"),
        (Stack("a", "z"), "no adapter is called 'z'"),
        (Mix(z=1.0), "no adapter is called 'z'"),
        (Route("z"), "no adapter is called 'z'"),
        (Fuse("a", "z", by="f"), "no adapter is called 'z'"),
        (Fuse("a", "c", by="f"), "'f' combines"),
        (Fuse("a", "b", by="c"), "'c' combines nothing"),
        (Stack("a", "a"), "acts once in a composition"),
        (Stack("a", Mix(a=1, b=1)), "acts once in a composition"),
        (Route("a", "a"), "acts once in a composition"),
        (7, "a composition is a name"),
        (Stack("a", 7), "a composition is a name"),  # type: ignore[arg-type]
        (Stack(), "names no adapter"),
        (Route(), "names no adapter"),
        (Route("a", Stack("b", "c")), "Route takes names"),  # type: ignore[arg-type]
        (Fuse("a", Stack("b", "c"), by="f"), "Fuse takes names"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_composition_is_refused(composition: Any, message: str) -> None:
    model, _ = fused("bert", KINDS["houlsby"], KINDS["houlsby"], KINDS["lora"])
    before = model._trimtab.switch.composition  # type: ignore[union-attr]
    with pytest.raises(trimtab.InputError, match=message):
        trimtab.activate(model, composition)
    assert model._trimtab.switch.composition == before  # type: ignore[union-attr]


@pytest.mark.parametrize("weights", [{}, {"a": "1"}, {"a": float("nan")}, {"a": True}])
def test_a_mix_takes_numbers(weights: dict[str, Any]) -> None:
    with pytest.raises(trimtab.InputError, match="Mix takes a number for each adapter"):
        Mix(weights)


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (None, "say which acts on which example"),
        (["a", "b", "c", "a"], "route names 'c'"),
        (["a", "b", "a"], "route names 3 adapters, for a batch of 4"),
        ([], "route names 0 adapters"),
        ("abab", "route names one adapter an example"),
        ([1, 2, 3, 4], "route names one adapter an example"),
    ],
)
def test_routes_that_do_not_fit_are_refused(route: Any, message: str) -> None:
    model, batch = carrying("bert", KINDS["lora"], KINDS["houlsby"], KINDS["lora"])
    trimtab.activate(model, Route("a", "b"))
    with pytest.raises(trimtab.InputError, match=message):
        model(**batch, route=route)


def test_a_route_for_adapters_that_are_not_routed_is_refused() -> None:
    model, batch = carrying("bert", KINDS["lora"], KINDS["houlsby"])
    with pytest.raises(trimtab.InputError, match="route"):
        model(**batch, route=ROUTE)


def test_routed_adapters_are_not_merged() -> None:
    model, _ = carrying("bert", KINDS["lora"], KINDS["lora"])
    trimtab.activate(model, Route("a", "b"))
    with pytest.raises(trimtab.StateError, match="routed by example"):
        trimtab.merge(model)
