"""What is put on a model: parts side by side, models within models, failures on the way."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
import transformers
from torch import Tensor, nn

import trimtab
from trimtab.choose import choose
from trimtab.core.adapter import Adapter, record
from trimtab.core.compose import Composition
from trimtab.core.delta import Tensors
from trimtab.core.errors import InputError, StateError
from trimtab.core.host import Deltas
from trimtab.core.method import Method
from trimtab.match import Target
from trimtab.place import build


class Attends(nn.Module):
    """A module of torch's own, which reads its projections itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x, x, x)[0]
        return found


def stir(adapter: Adapter) -> None:
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def test_parts_of_a_parameter_have_a_delta_each() -> None:
    model = Attends()
    names = ["inner.in_proj_weight[query]", "inner.in_proj_weight[value]"]
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2), to=names)
    stir(adapter)
    before = model.inner.in_proj_weight.detach().clone()
    changed = model(x := torch.randn(2, 5, 8))
    trimtab.merge(model)
    torch.testing.assert_close(model(x), changed)
    differs = (model.inner.in_proj_weight != before).any(1)
    assert differs.tolist() == [True] * 8 + [False] * 8 + [True] * 8
    held = {name for name, _ in model.named_parameters() if "lora" in name}
    assert len(held) == len(adapter.parameters()) == 4


def test_a_delta_does_not_take_the_place_of_another() -> None:
    deltas, empty = Deltas(), Tensors({}, torch.device("cpu"))
    deltas.add("a", "lora", empty)
    with pytest.raises(StateError, match="'lora' here already"):
        deltas.add("a", "lora", empty)


def test_a_model_and_a_part_of_it_are_not_attached_to_both() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))
    inner = model[0]
    for first, second in ((inner, model), (model, inner)):
        trimtab.attach(first, trimtab.LoRA(rank=2), to="0*")
        with pytest.raises(StateError, match="attach to one of the two only"):
            trimtab.attach(second, trimtab.LoRA(rank=2), to="0*", name="other")
        trimtab.attach(first, trimtab.LoRA(rank=2), to="0*", name="other")
        for name in ("default", "other"):
            trimtab.detach(first, name)
    assert all(type(module).__module__.startswith("torch") for module in model.modules())


@pytest.mark.parametrize("method", [trimtab.ReFT(rank=2), trimtab.CoDA(of=2)])
def test_a_network_beside_a_stack_hears_the_blocks_as_they_stand(method: Method) -> None:
    stacked, alone = [], []
    for order in (("other", "side"), ("side", "other")):
        model, batch = cases.by_name("bert").model(), cases.by_name("bert").batch()
        for name in order:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(len(name))
                one = method if name == "other" else trimtab.Side()
                stir(trimtab.attach(model, one, name=name))
        trimtab.activate(model, trimtab.Stack("other", "side"))
        stacked.append(cases.logits(model, batch))
        trimtab.detach(model, "other")
        assert record(model).switch.active == ("side",)
        alone.append(cases.logits(model, batch))
    assert torch.equal(*stacked)
    assert torch.equal(*alone)
    assert not torch.equal(stacked[0], alone[0])


@pytest.mark.parametrize("joined", [trimtab.Mix(a=0.5, b=0.5), trimtab.Route("a", "b")])
def test_what_a_detached_part_leaves_inactive_does_not_train(joined: Composition) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    a, b, c = (trimtab.attach(model, trimtab.LoRA(rank=2), to="0", name=name) for name in "abc")
    trimtab.activate(model, trimtab.Stack(joined, "c"))
    trimtab.detach(model, "b")
    assert record(model).switch.active == ("c",)
    assert not any(p.requires_grad for p in (*a.parameters(), *b.parameters()))
    assert all(p.requires_grad for p in c.parameters())


@pytest.mark.parametrize("to", [[], (), "", [""], ["0", ""]])
def test_an_empty_target_is_not_everything(to: Target) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(InputError, match="names nothing"):
        trimtab.attach(model, trimtab.LoRA(rank=2), to=to)
    with pytest.raises(InputError, match="names nothing"):
        trimtab.attach(model, {"": trimtab.LoRA(rank=2)})


def hears() -> nn.Module:
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_stride=(4, 4),
        conv_kernel=(4, 4),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return transformers.Wav2Vec2Model(config).eval()


def sees() -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=3
    )
    return transformers.ResNetForImageClassification(config).eval()


def sees_by_blocks() -> nn.Module:
    config = transformers.ConvNextConfig(hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 2, 1])
    return transformers.ConvNextModel(config).eval()


def attends_to_anything() -> nn.Module:
    config = transformers.PerceiverConfig(
        num_latents=4,
        d_latents=8,
        d_model=8,
        num_blocks=1,
        num_self_attends_per_block=2,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
    )
    return transformers.PerceiverModel(config).eval()


@pytest.mark.parametrize(
    ("make", "shape", "to"),
    [
        (hears, (2, 200), None),
        (sees, (2, 3, 32, 32), "*.convolution"),
        (sees_by_blocks, (2, 3, 64, 64), None),
        (attends_to_anything, (2, 5, 8), None),
    ],
)
def test_models_without_a_module_that_embeds_their_input(
    make: Callable[[], nn.Module], shape: tuple[int, ...], to: Target | None
) -> None:
    model, x = make(), torch.randn(shape)
    with torch.no_grad():
        before = model(x)[0]
        adapter = trimtab.attach(model, trimtab.LoRA(rank=2), to=to)
        assert torch.equal(model(x)[0], before)
    stir(adapter)
    changed = model(x)[0]
    assert not torch.equal(changed, before)
    changed.sum().backward()
    assert all(p.grad is not None for p in adapter.parameters())
    trimtab.detach(model)
    with torch.no_grad():
        assert torch.equal(model(x)[0], before)


class Unwatched(nn.Module):
    """A model that fails once something is on it: when its first module is asked for."""

    main_input_name = "pixels"

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)])
        self.head = nn.Linear(4, 2)

    def get_input_embeddings(self) -> nn.Module:
        first = self.blocks[0][0]  # type: ignore[index]
        if type(first) is not nn.Linear:
            raise ZeroDivisionError
        return first


class Unhooked(Unwatched):
    """One that fails earlier: when a hook is to be hung at it."""

    def register_forward_hook(self, *args: Any, **options: Any) -> Any:
        raise ZeroDivisionError


def of_ours(model: nn.Module) -> list[object]:
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    return [*hooks, *(m for m in model.modules() if not type(m).__module__.startswith("torch"))]


@pytest.mark.parametrize("make", [Unwatched, Unhooked])
@pytest.mark.parametrize("method", [trimtab.VeRA(rank=2), trimtab.BitFit()])
def test_a_failure_leaves_the_model_as_it_was(method: Method, make: type[nn.Module]) -> None:
    model: Any = make()
    model.head.bias.requires_grad_(False)
    asked, values = [p.requires_grad for p in model.parameters()], cases.state(model)
    with pytest.raises(ZeroDivisionError):
        trimtab.attach(model, method)
    assert of_ours(model) == [model]
    assert not [key for key in model.__dict__ if "trimtab" in key]
    assert [p.requires_grad for p in model.parameters()] == asked
    cases.assert_same_state(model, values)


class Narrow(nn.Module):
    """Blocks whose feed-forward layer reads fewer features than it gives."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.ModuleDict({"up": nn.Linear(3, 6), "down": nn.Linear(6, 4)})
        self.blocks = nn.ModuleList([block, copy.deepcopy(block)])


def test_a_sublayer_that_is_read_with_another_width_is_refused_before_anything_is_placed() -> None:
    model = Narrow()
    pairs = choose(model, trimtab.Parallel(), None, ())
    with pytest.raises(InputError, match="no map is known that reads it"):
        build(model, pairs)
    with pytest.raises(InputError, match="no map is known that reads it"):
        trimtab.attach(model, trimtab.Parallel())
    assert of_ours(model) == [model]


def test_dropout_is_refused_where_no_input_is_seen() -> None:
    for method in (trimtab.LoRA(dropout=0.9), trimtab.DoRA(dropout=0.9), trimtab.VeRA(dropout=0.9)):
        model = Attends()
        with pytest.raises(InputError, match=r"no dropout can act .*in_proj_weight"):
            trimtab.attach(model, method)
        assert of_ours(model) == [model]
        trimtab.attach(model, dataclasses.replace(method, dropout=0.0))


class Ranked(nn.Module):
    """A module whose parameters are called as what laws know of a delta."""

    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            setattr(self, name, nn.Parameter(torch.randn(4)))

    def forward(self, x: Tensor) -> Tensor:
        for name in NAMES:
            x = x * getattr(self, name)
        return x


NAMES = ("index", "site", "total", "method", "exact", "tensors", "shared", "values", "key")


def test_a_module_trained_whole_may_call_its_parameters_anything(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Ranked())
    x = torch.randn(3, 4)
    before = model(x)
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2), to="0", train=["1"])
    torch.testing.assert_close(model(x), before)
    stir(adapter)
    changed = model(x)
    changed.sum().backward()
    assert all(p.grad is not None for p in adapter.parameters())
    copied = copy.deepcopy(model).train().to(torch.float32)
    assert torch.equal(copied(x), changed)
    trimtab.save(model, tmp_path)
    trimtab.merge(copied)
    torch.testing.assert_close(copied(x), changed)
    trimtab.detach(model)
    torch.testing.assert_close(model(x), before)
    trimtab.load(model, tmp_path)
    assert torch.equal(model(x), changed)
