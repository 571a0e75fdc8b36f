"""What is put on a model: parts side by side, models within models, failures on the way."""

from __future__ import annotations

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core.adapter import Adapter, record
from trimtab.core.compose import Composition
from trimtab.core.delta import Tensors
from trimtab.core.errors import InputError, StateError
from trimtab.core.host import Deltas
from trimtab.core.method import Method
from trimtab.match import Target


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
    assert differs[:8].all() and not differs[8:16].any() and differs[16:].all()
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
    assert torch.equal(*stacked) and torch.equal(*alone)
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
