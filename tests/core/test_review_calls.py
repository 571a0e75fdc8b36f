"""The facts of one call stay with that call: when it fails, recomputes, or enters at a stack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cases
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import trimtab
from trimtab import LoRA, Route, StateError, activate, attach, given
from trimtab.core import kernel
from trimtab.kernels.lora import LoRALinear


def routed(name: str) -> nn.Module:
    """A model whose adapters a and b, both moved, are routed by example."""
    model = cases.by_name(name).model()
    for seed, letter in enumerate("ab"):
        cases.perturb(attach(model, LoRA(rank=2), name=letter), seed=seed, by=0.3)
    activate(model, Route("a", "b"))
    return model


def ids(rows: int, positions: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 40, (rows, positions), generator=generator)


def checkpointing(model: nn.Module, reentrant: bool) -> None:
    model.activation_checkpointing_enable({"use_reentrant": reentrant})  # type: ignore[operator]


@torch.no_grad()
def test_the_route_of_a_failed_call_reaches_no_later_one() -> None:
    model = routed("t5").eval()
    encoder = model.get_submodule("encoder")
    with given(model, route=["b", "a"]):
        expected = encoder(ids(2)).last_hidden_state
    with pytest.raises(IndexError):
        model(input_ids=ids(2), decoder_input_ids=ids(2) + 10**6, route=["a", "b"])
    with pytest.raises(trimtab.InputError, match="say which acts"):
        encoder(ids(2))
    with given(model, route=["b", "a"]):
        assert torch.equal(encoder(ids(2)).last_hidden_state, expected)


class Interrupted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyboardInterrupt


@torch.no_grad()
def test_nor_does_the_route_of_one_that_was_interrupted() -> None:
    model = routed("t5").eval()
    encoder, head = model.get_submodule("encoder"), model._modules["lm_head"]
    with given(model, route=["b", "a"]):
        expected = encoder(ids(2)).last_hidden_state
    model._modules["lm_head"] = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        model(input_ids=ids(2), decoder_input_ids=ids(2), route=["a", "b"])
    model._modules["lm_head"] = head
    with given(model, route=["b", "a"]):
        assert torch.equal(encoder(ids(2)).last_hidden_state, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_calls_of_the_body_keep_their_own_routes(reentrant: bool) -> None:
    model = routed("llama").train()
    body = model.get_submodule("model")

    def gradients() -> list[Tensor]:
        model.zero_grad()
        with given(model, route=["a", "b"]):
            first = body(ids(2)).last_hidden_state
        with given(model, route=["b", "a"]):
            second = body(ids(2, seed=1)).last_hidden_state
        (first[..., 1].sum() + second[..., 0].square().sum()).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients()
    checkpointing(model, reentrant)
    assert len(expected) > 4
    torch.testing.assert_close(gradients(), expected)


@pytest.mark.parametrize(("name", "path"), [("llama", "model"), ("bert", "bert")])
def test_a_body_called_by_itself_pins_its_adapters(name: str, path: str) -> None:
    model = routed(name).train()
    checkpointing(model, reentrant=True)
    activate(model, "a")
    hidden = model.get_submodule(path)(ids(2)).last_hidden_state
    activate(model, "b")
    with pytest.raises(StateError, match="changed between"):
        hidden.sum().backward()


@dataclass
class Result:
    y: Tensor


class Plain(nn.Module):
    """Returns a data class that is no dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Result:
        return Result(checkpoint(lambda x: self.fc(x).tanh(), x, use_reentrant=True))


def test_outputs_that_are_plain_data_classes_are_seen() -> None:
    model = Plain()
    for letter in "ab":
        attach(model, LoRA(rank=2), name=letter, to=["fc"])
    activate(model, "a")
    y = model(torch.randn(2, 8, requires_grad=True)).y
    activate(model, "b")
    with pytest.raises(StateError, match="changed between"):
        y.sum().backward()


@pytest.fixture
def compiling() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiling")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("route", [False, True])
def test_the_whole_call_compiles_as_one_graph(route: bool) -> None:
    model = routed("llama").eval()
    if not route:
        activate(model, "a")
    more = {"route": ["b", "a"]} if route else {}
    with torch.no_grad():
        expected = model(ids(2), use_cache=False, **more).logits
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        found = compiled(ids(2), use_cache=False, **more).logits
    torch.testing.assert_close(found, expected)


def lora_on_a_map() -> tuple[nn.Module, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    adapter = attach(model, LoRA(rank=2), to="0")
    cases.perturb(adapter, by=0.3)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    return model, x, [p.detach().double() for p in adapter.parameters()]


def test_the_fused_product_has_second_derivatives() -> None:
    model, x, (A, B) = lora_on_a_map()
    W, b = (p.detach() for p in model[0].base.parameters())  # type: ignore[index, union-attr]
    A, B = A.requires_grad_(), B.requires_grad_()

    def fused(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return LoRALinear.apply(x, W, b, A, B, 1.5)

    assert torch.autograd.gradcheck(fused, (x, A, B))
    assert torch.autograd.gradgradcheck(fused, (x, A, B))


def test_gradients_of_gradients_are_those_of_the_law() -> None:
    model, x, _ = lora_on_a_map()

    def second() -> Tensor:
        (first,) = torch.autograd.grad(model(x).tanh().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    found = second()
    with kernel.disabled():
        torch.testing.assert_close(found, second())


def test_transforms_of_functions_evaluate_the_law() -> None:
    model, x, _ = lora_on_a_map()
    x = x.detach()

    def loss(one: Tensor) -> Tensor:
        return model(one[None]).tanh().sum()

    found = torch.func.vmap(torch.func.grad(loss))(x)
    each = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(each).tanh().sum(), each)
    torch.testing.assert_close(found, expected)


class Positions(nn.Module):
    """Looks its positions up without a batch, as small models of the kind of nanoGPT do."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(50, 16), nn.Embedding(32, 16)
        self.fc = nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        return self.fc(h.flatten(0, 1)).view(*ids.shape, -1)  # rows of tokens, example by example


def each_and_routed(to: list[str], batch: Tensor) -> tuple[Tensor, Tensor]:
    model = Positions()
    for seed, letter in enumerate("ab"):
        cases.perturb(attach(model, LoRA(rank=2), to=to, name=letter), seed=seed, by=0.3)
    expected = []
    for row, letter in enumerate("ab"):
        activate(model, letter)
        expected.append(model(batch)[row])
    activate(model, Route("a", "b"))
    return model(batch, route=["a", "b"]), torch.stack(expected)


def test_flattened_tokens_are_rows_of_their_examples() -> None:
    torch.testing.assert_close(*each_and_routed(["wte", "fc"], ids(2, 8)))


@pytest.mark.parametrize("positions", [2, 4, 8])
def test_positions_without_a_batch_are_not_routed(positions: int) -> None:
    with pytest.raises(trimtab.InputError, match=r"'wpe' is called with .* not examples"):
        each_and_routed(["wpe"], ids(2, positions))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.shared_expert = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        chosen = x[..., 0] > 0
        y = torch.empty_like(x)
        y[chosen], y[~chosen] = self.experts[0](x[chosen]), self.experts[1](x[~chosen])
        return y + self.shared_expert(x)


def test_experts_are_not_routed_by_example() -> None:
    model = Experts()
    for letter in "ab":
        attach(model, LoRA(rank=2), to=["experts.*"], name=letter)
        attach(model, LoRA(rank=2), to=["shared_expert"], name=f"shared-{letter}")
    with pytest.raises(trimtab.InputError, match="a router chose"):
        activate(model, Route("a", "b"))
    activate(model, Route("shared-a", "shared-b"))
    with pytest.raises(trimtab.InputError, match="none of"):
        model(torch.randn(2, 3, 8), route=["a", "b"])


def test_a_body_of_pictures_takes_the_route_that_is_given_now() -> None:
    model = routed("vit").train()
    batch = cases.by_name("vit").batch()
    body = model.get_submodule("vit")
    with given(model, route=["a", "b"]):
        expected = body(**batch).last_hidden_state
    model(**batch, route=["b", "a"])
    with given(model, route=["a", "b"]):
        torch.testing.assert_close(body(**batch).last_hidden_state, expected)


def intervened() -> nn.Module:
    model = cases.by_name("llama").model().eval()
    cases.perturb(attach(model, trimtab.ReFT(rank=2, first=1, last=1)), by=0.5)
    return model


@torch.no_grad()
def test_the_prompt_ends_at_the_labels_for_embeddings_too() -> None:
    model, tokens = intervened(), ids(2, 8)
    labels = tokens.clone()
    labels[:, :4] = -100
    embeds = model.get_input_embeddings()(tokens)  # type: ignore[operator]
    expected = model(tokens, labels=labels).logits
    torch.testing.assert_close(model(inputs_embeds=embeds, labels=labels).logits, expected)
    assert not torch.allclose(model(tokens).logits, expected)


def test_what_was_generated_is_no_prompt() -> None:
    model = intervened()
    with pytest.raises(trimtab.InputError, match="use_cache=True"):
        model.generate(ids(2), max_new_tokens=3, use_cache=False)  # type: ignore[operator]
    model.generate(ids(2), max_new_tokens=3, use_cache=True)  # type: ignore[operator]


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_the_states_of_all_blocks_have_the_positions_of_the_input(name: str) -> None:
    model = cases.by_name(name).model().eval()
    attach(model, trimtab.PromptTuning(length=3), name="p")
    states = model(ids(2, 6), output_hidden_states=True).hidden_states
    assert len(states) > 2
    assert {state.shape[1] for state in states} == {6}
    activate(model, None)
    assert {h.shape[1] for h in model(ids(2, 6), output_hidden_states=True).hidden_states} == {6}


@torch.no_grad()
def test_a_body_that_is_the_model_itself_gives_no_prompt_back() -> None:
    body = cases.by_name("llama").model().get_submodule("model").eval()
    attach(body, trimtab.PromptTuning(length=3))
    out = body(ids(2, 6), output_hidden_states=True)
    assert {state.shape[1] for state in (out.last_hidden_state, *out.hidden_states)} == {6}
