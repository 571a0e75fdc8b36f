"""Starts from data: HF PEFT's values, or what the paper says of them; padding; bad input."""

from __future__ import annotations

import inspect
from typing import Any

import cases
import peft
import pytest
import torch
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import get_eva_state_dict
from peft.utils.incremental_pca import IncrementalPCA
from small import TARGETS, batches, net, of_peft
from torch import Tensor

import trimtab
from trimtab import init
from trimtab.init.eva import Directions

METHOD = trimtab.LoRA(rank=4, alpha=6)


def near(one: Tensor, other: Tensor, tolerance: float) -> None:
    """The same rows but for their signs."""
    other = other.detach().to(one)
    signs = (one * other).sum(1, keepdim=True).sign()
    torch.testing.assert_close(one, signs * other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rho", [1.0, 2.0])
@pytest.mark.parametrize("whiten", [False, True])
def test_eva_as_hf_peft_finds_it(rho: float, whiten: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = {"lowrank": False, "lowrank_seed": None}  # theirs is a randomised decomposition
    monkeypatch.setattr(
        "peft.tuners.lora.eva.IncrementalPCA", lambda **own: IncrementalPCA(**{**own, **exact})
    )
    data = batches()
    targets = ["left", "out"] if whiten else TARGETS  # they whiten shared directions twice
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=targets,
        init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=rho, whiten=whiten, tau=0.99999),
    )
    theirs = get_eva_state_dict(
        net(),
        data,
        config,
        forward_fn=lambda model, x: model(x),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=lambda x, *_: x[0] if isinstance(x, tuple) else x,
        show_progress_bar=False,
    )
    ours, x = net(), torch.randn(5, 12)
    adapter = trimtab.attach(ours, METHOD, targets)
    init.eva(ours, data, rho=rho, whiten=whiten, tau=0.99999, passes=300)
    assert torch.equal(ours(x), net()(x))
    found = dict(adapter.deltas())
    ranks = {site: len(A) for site, A in theirs.items() if len(A)}
    assert sorted(len(d.A) for d in found.values()) == sorted(ranks.values())
    assert len(found["out"].A) == ranks["out"]
    for site, delta in found.items():
        n = min(len(delta.A), len(theirs[site]))  # left and right, equal inputs, may be exchanged
        near(delta.A[:n], theirs[site][:n], 1e-2)
        assert delta.method.scale == METHOD.scale
        assert delta.method.rank == len(delta.A) == delta.B.shape[1]


def test_eva_leaves_out_a_site_and_puts_it_back_when_it_is_detached() -> None:
    def of_two_directions() -> Any:
        """The inputs of `out` vary along two directions, those of `left` along twelve."""
        model = net()
        with torch.no_grad():
            model.left.weight[1:] = 0
            model.right.weight[:1] = model.right.weight[2:] = 0
        return model

    model, x = of_two_directions(), torch.randn(5, 12)
    adapter = trimtab.attach(model, trimtab.LoRA(rank=1), ["left", "out"])
    init.eva(model, [torch.randn(200, 12) for _ in range(3)])
    assert list(adapter.hosts) == ["out"]
    assert [(site, method.rank, method.scale) for site, method in adapter.entries] == [
        ("out", 2, 16.0)
    ]
    with torch.no_grad():
        for parameter in trimtab.parameters(model):
            parameter.add_(0.1)
    base = of_two_directions()(x)
    assert not torch.equal(model(x), base)
    trimtab.detach(model)
    assert torch.equal(model(x), base)
    assert type(model.left) is type(model.out) is torch.nn.Linear


def test_directions_batch_by_batch_are_those_of_all_rows() -> None:
    data = torch.cat(batches())
    directions = Directions(12, tau=0.99)
    for part in data.split([50, 3, 37, 70]):  # three rows alone say too little, and are passed over
        directions.take(part)
    kept = torch.cat([data[:50], data[53:]])
    _, S, V = torch.linalg.svd(kept - kept.mean(0), full_matrices=False)
    torch.testing.assert_close(directions.S, S, rtol=1e-4, atol=1e-4)
    near(directions.V, V, 1e-3)
    assert abs(directions.explained.sum() - 1) < 1e-5


def test_eva_shares_the_work_of_equal_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = Directions.take
    monkeypatch.setattr(Directions, "take", lambda self, x: (taken.append(id(self)), take(self, x)))
    model = net()
    trimtab.attach(model, METHOD, TARGETS)
    init.eva(model, batches())
    assert len(set(taken)) == 2  # one for left and right, one for out


def test_padding_and_ignored_positions_do_not_count() -> None:
    architecture = cases.by_name("llama")
    tokens = torch.randint(5, 90, (8, 12))
    mask = torch.ones_like(tokens)
    mask[:, 9:] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    found = []
    for padding in (1, 2):  # what stands there does not matter
        ids = tokens.masked_fill(mask == 0, padding)
        model = architecture.model().eval()
        adapter = trimtab.attach(model, trimtab.LoRA(rank=2), "query")
        init.eva(model, [{"input_ids": ids, "attention_mask": mask, "labels": labels}], tau=-1)
        found.append({site: delta.A for site, delta in adapter.deltas()})
    for site, A in found[0].items():
        torch.testing.assert_close(A, found[1][site])


def test_eva_says_when_data_are_too_few() -> None:
    model = net()
    trimtab.attach(model, METHOD, TARGETS)
    with pytest.raises(trimtab.InputError, match="no batch of at least 8 positions"):
        init.eva(model, [torch.randn(3, 12)])
    with pytest.raises(trimtab.InputError, match="no batch of at least 8 positions"):
        init.eva(model, [])
    with pytest.raises(trimtab.InputError, match="rho must be at least 1"):
        init.eva(model, batches(), rho=0.5)
    with pytest.warns(UserWarning, match="still turn"):
        init.eva(model, (batch for batch in batches()[:1]))


def by_peft(data: list[Tensor], mode: str) -> Any:
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=TARGETS,
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=mode),
    )
    model = net()
    preprocess_corda(model, config, run_model=lambda: [model(x) for x in data])
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_as_hf_peft_finds_it(mode: str) -> None:
    """Of one batch, whose scale does not matter to the product; of several, HF PEFT scales each."""
    data, x = [torch.cat(batches())], torch.randn(5, 12)
    theirs = by_peft(data, mode)
    ours = net()
    adapter = trimtab.attach(ours, METHOD, TARGETS)
    init.corda(ours, data, mode=mode)
    assert torch.equal(ours(x), net()(x))
    for site, delta in adapter.deltas():
        product = delta.method.scale * delta.B @ delta.A
        torch.testing.assert_close(product, of_peft(theirs, site), rtol=1e-3, atol=1e-4)
        A = theirs.get_submodule(f"base_model.model.{site}").lora_A.default.weight
        near(*(one / one.norm() for one in (delta.A, A)), 1e-2)


@pytest.mark.parametrize("size", [1.0, 1e-20, 1e25])
@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_is_its_equation(mode: str, size: float) -> None:
    """C is that of all rows alike, however they are cut into batches, of any size."""
    rows = torch.cat([part * scale for part, scale in zip(batches(), (1, 0.1, 5, 1), strict=True)])
    found = []
    for data in ([rows], list(rows.split(30)), [rows[100:], rows[:100]]):
        model = net()
        adapter = trimtab.attach(model, METHOD, ["left"])
        init.corda(model, [part * size for part in data], mode=mode)
        found.append(adapter.members[0])
    W, X = net().left.weight.detach().double(), rows.double()
    C = X.T @ X / len(X)
    C = C + 0.01 * C.diagonal().mean() * torch.eye(12)  # what makes it invertible
    U, S, V = torch.linalg.svd(W @ C, full_matrices=False)
    part = slice(0, 4) if mode == "ipm" else slice(8, 12)
    product = U[:, part] * S[part] @ V[part] @ torch.linalg.inv(C)
    root = (S[part] / METHOD.scale).sqrt()[:, None]
    A = root * V[part] @ torch.linalg.inv(C)
    for delta in found:
        ours = delta.method.scale * delta.B @ delta.A
        torch.testing.assert_close(ours, product.float(), rtol=1e-3, atol=1e-4)
        near(delta.A * size, A.float(), 1e-2)


def test_corda_refuses_other_modes_and_no_data() -> None:
    model = net()
    trimtab.attach(model, METHOD, TARGETS)
    with pytest.raises(trimtab.InputError, match="not 'both'"):
        init.corda(model, batches(), mode="both")
    for data in ([], [torch.zeros(5, 12)], [torch.full((5, 12), torch.inf)]):
        with pytest.raises(trimtab.InputError, match="'left' saw no inputs, none but zeros"):
            init.corda(model, data)


@pytest.mark.parametrize("niter", [None, 8])
def test_lora_ga_steps_along_the_gradient(niter: int | None) -> None:
    """The change of W under one step of A and B is the best of rank 2r to that of W itself."""
    x, labels = torch.randn(30, 12), torch.randint(0, 10, (30,))
    plain = net()
    loss = plain(x, labels).loss
    gradients = torch.autograd.grad(loss, [plain.get_submodule(n).weight for n in TARGETS])
    model = net()
    adapter = trimtab.attach(model, METHOD, TARGETS)
    init.lora_ga(model, [{"x": x, "labels": labels}], niter=niter)
    assert torch.equal(model(x), plain(x))
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".deltas." not in n)
    for (_, delta), G in zip(sorted_by(adapter), gradients, strict=True):
        out, rank, s = len(G), delta.method.rank, delta.method.scale
        step = s * s * (delta.B @ delta.B.T @ G + G @ delta.A.T @ delta.A)
        U, S, V = torch.linalg.svd(G, full_matrices=False)
        best = U[:, : 2 * rank] * S[: 2 * rank] @ V[: 2 * rank]
        factor = s * s * out**0.5 / 16
        torch.testing.assert_close(step, factor * best, rtol=1e-2, atol=1e-5)


def sorted_by(adapter: Any) -> list[Any]:
    return sorted(adapter.deltas(), key=lambda pair: TARGETS.index(pair[0]))


def test_lora_ga_takes_a_loss_and_the_mean_over_batches() -> None:
    x = torch.randn(30, 12)
    found = []
    for data in ([x], [x[:15], x[15:]]):
        model = net()
        adapter = trimtab.attach(model, METHOD, TARGETS)
        with torch.no_grad():  # gradients are taken all the same
            init.lora_ga(model, data, loss=lambda m, one: m(one).square().mean(), niter=None)
        found.append({site: delta.B @ delta.B.T for site, delta in adapter.deltas()})
    for site, product in found[0].items():
        torch.testing.assert_close(product, found[1][site], rtol=1e-2, atol=1e-3)


def test_lora_ga_names_what_is_missing() -> None:
    model = net()
    trimtab.attach(model, METHOD, TARGETS)
    with pytest.raises(trimtab.InputError, match="computes no loss"):
        init.lora_ga(model, batches())
    with pytest.raises(trimtab.InputError, match="no batches"):
        init.lora_ga(model, [])
    with pytest.raises(trimtab.InputError, match="does not depend on the weight of 'out'"):
        init.lora_ga(model, batches(), loss=lambda m, x: m.left(x).sum() + m.right(x).sum())
    trimtab.attach(model, trimtab.LoRA(rank=6), TARGETS, name="wide")
    with pytest.raises(trimtab.InputError, match="twice the rank at 'out' is 12"):
        init.lora_ga(model, batches(), "wide")


@pytest.mark.parametrize("start", ["eva", "corda", "lora_ga", "fisher"])
@pytest.mark.parametrize("one", ["mapping", "tensor", "text", "number"])
def test_one_batch_is_not_several(start: str, one: str) -> None:
    """Its rows, or its arguments' names, would be taken for batches."""
    x = torch.randn(5, 12)
    given = {"mapping": {"x": x, "labels": x[:, 0]}, "tensor": x, "text": "x", "number": 3}[one]
    model = net()
    trimtab.attach(model, trimtab.SHiRA(rank=1) if start == "fisher" else METHOD, TARGETS)
    with pytest.raises(trimtab.InputError, match=r"an iterable of batches.* give \[batch\]"):
        getattr(init, start)(model, given)


def test_all_starts_take_their_arguments_in_one_order() -> None:
    """(model, what it starts from, name), and by keyword what else there is."""
    for function in vars(init).values():
        if not inspect.isfunction(function) or function.__name__ in ("alternate", "nf4"):
            continue
        parameters = list(inspect.signature(function).parameters.values())
        by_place = [one for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
        names = [one.name for one in by_place]
        assert (names[0], names[-1], by_place[-1].default) == ("model", "name", None)
        assert names[1:-1] in ([], ["batches"], ["floats"]), function.__name__
        rest = parameters[len(by_place) :]
        assert all(one.kind is one.KEYWORD_ONLY for one in rest)
        assert all(one.default is not one.empty for one in rest)


@pytest.mark.parametrize("start", ["eva", "corda", "lora_ga"])
def test_embeddings_have_no_such_inputs(start: str) -> None:
    architecture = cases.by_name("gpt2")
    model = architecture.model()
    trimtab.attach(model, trimtab.LoRA(rank=2), ["embedding", "*c_fc"])
    with pytest.raises(trimtab.InputError, match=r"'transformer\.wte' .*is no linear map"):
        getattr(init, start)(model, [architecture.batch()])


@pytest.mark.parametrize("start", ["eva", "corda", "lora_ga"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_on_real_architectures(start: str, name: str) -> None:
    """The base's outputs at the start; then the active composition and the modes are as before."""
    architecture = cases.by_name(name)
    model = architecture.model().train()
    trimtab.attach(model, trimtab.LoRA(rank=2), name="other")
    trimtab.attach(model, trimtab.LoRA(rank=2), "value", name="new")
    trimtab.activate(model, "other")
    options = {"tau": -1.0} if start == "eva" else {}
    getattr(init, start)(model, [architecture.batch()], "new", **options)
    assert model._trimtab.switch.active == ("other",)
    assert all(module.training for module in model.modules())
    trimtab.activate(model, "new")
    batch = architecture.batch()
    found, base = (
        cases.logits(model.eval(), batch),
        cases.logits(architecture.model().eval(), batch),
    )
    torch.testing.assert_close(found, base, rtol=0, atol=0)
