"""Several adapters into one: HF PEFT's `add_weighted_adapter` as the oracle, statistics of what is
drawn, and what cannot be combined.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.combine.adapters import cut
from trimtab.combine.arithmetic import METHODS, Way, drawn, largest

WEIGHTS = {"a": 0.7, "b": 0.5, "c": -0.4}
SITES = ["embed", "first", "last"]
PRUNES = ["ties", "magnitude_prune"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Embedding(20, 12), nn.Linear(12, 16)
        self.norm, self.last = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.norm(torch.tanh(self.first(self.embed(ids)))))


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return Net().eval()


def fill(model: nn.Module, adapter: Any) -> None:
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))


def three(ranks: tuple[int, int, int] = (4, 4, 4), **options: Any) -> Net:
    model = net()
    for name, rank, alpha in zip("abc", ranks, (8, 3, 4), strict=True):
        method = trimtab.LoRA(rank=rank, alpha=alpha, **options)
        fill(model, trimtab.attach(model, method, SITES, name=name))
    return model


def theirs(ours: Net, tmp_path: Path, weights: Mapping[str, float], **options: Any) -> Any:
    """HF PEFT's combination of the same adapters."""
    there = None
    for name in weights:
        trimtab.save(ours, tmp_path / name, name=name, format="peft")
        if there is None:
            there = peft.PeftModel.from_pretrained(net(), tmp_path / name, adapter_name=name)
        else:
            there.load_adapter(tmp_path / name, adapter_name=name)
    assert there is not None
    there.base_model.add_weighted_adapter(list(weights), list(weights.values()), "new", **options)
    there.set_adapter("new")
    return there.eval()


def changes(model: nn.Module, name: str) -> dict[str, Tensor]:
    return {
        site: delta.method.delta(delta.values(torch.float32)).detach()
        for site, delta in model._trimtab.adapter(name).deltas()
        if delta.method.name == "lora"
    }


def same(ours: Net, there: Any) -> None:
    ids = torch.randint(0, 20, (4, 6))
    torch.testing.assert_close(ours(ids), there(ids), rtol=1e-4, atol=1e-5)
    for site, change in changes(ours, "new").items():
        layer = there.get_submodule(f"base_model.model.{site}")
        other = layer.get_delta_weight("new").detach()
        other = other.T if site == "embed" else other
        torch.testing.assert_close(change, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("method", ["linear", "cat", "svd", *PRUNES, *(f"{p}_svd" for p in PRUNES)])
def test_as_hf_peft_combines(method: str, sign: str, tmp_path: Path) -> None:
    ours = three()
    options: dict[str, Any] = {"density": 0.6} if method.startswith(tuple(PRUNES)) else {}
    if sign == "frequency" and "ties" not in method:
        return
    there = theirs(
        ours, tmp_path, WEIGHTS, combination_type=method, majority_sign_method=sign, **options
    )
    adapter = trimtab.combine.adapters(
        ours, WEIGHTS, into="new", method=method, sign=sign, **options
    )
    assert ours._trimtab.switch.active == ("new",)
    assert [site for site, _ in adapter.entries] == SITES
    same(ours, there)


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_of_other_ranks_and_other_sites(method: str, tmp_path: Path) -> None:
    """Where an adapter has no site its change is zero; `cat` and a full `svd` are then exact."""
    ours = three((2, 5, 3))
    trimtab.detach(ours, "c")
    fill(ours, trimtab.attach(ours, trimtab.LoRA(rank=3), ["last"], name="c"))
    rank = {"svd": 10}.get(method)
    trimtab.combine.adapters(ours, WEIGHTS, into="new", method=method, rank=rank)
    each = {name: changes(ours, name) for name in WEIGHTS}
    for site, change in changes(ours, "new").items():
        expected = sum(w * each[n][site] for n, w in WEIGHTS.items() if site in each[n])
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)
    there = theirs(ours, tmp_path, WEIGHTS, combination_type=method, svd_rank=rank)
    same(ours, there)


def test_svd_is_the_best_of_its_rank() -> None:
    ours = three()
    trimtab.combine.adapters(ours, WEIGHTS, into="new", method="svd", rank=3)
    each = {name: changes(ours, name) for name in WEIGHTS}
    for site, change in changes(ours, "new").items():
        U, S, V = torch.linalg.svd(sum(w * each[n][site] for n, w in WEIGHTS.items()))
        torch.testing.assert_close(change, U[:, :3] * S[:3] @ V[:3], rtol=1e-3, atol=1e-4)
    B, A = torch.randn(8, 20), torch.randn(20, 30)  # of more columns than rows
    U, S, V = torch.linalg.svd(B @ A)
    low, high = cut(A, B, 3)
    torch.testing.assert_close(high @ low, U[:, :3] * S[:3] @ V[:3], rtol=1e-3, atol=1e-4)


def test_dare_keeps_the_mean_and_the_share() -> None:
    tensor = torch.randn(400, 400)
    kept = drawn(tensor, 0.2, torch.Generator().manual_seed(0))
    assert abs((kept != 0).float().mean() - 0.2) < 0.01
    torch.testing.assert_close(kept[kept != 0], 5 * tensor[kept != 0])
    many = sum(drawn(tensor, 0.2, torch.Generator().manual_seed(i)) for i in range(200)) / 200
    assert (many - tensor).norm() / tensor.norm() < 0.2
    assert torch.equal(drawn(tensor, 1.0, torch.Generator()), tensor)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_dare_draws_by_its_seed(method: str) -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        ours = three()
        torch.manual_seed(seed + 10 * len(found))  # which does not matter
        trimtab.combine.adapters(ours, WEIGHTS, into="new", method=method, density=0.5, seed=seed)
        found.append(changes(ours, "new")["first"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_dare_of_all_values_is_what_it_thins() -> None:
    for thinned, whole, options in (
        ("dare_linear", "linear", {}),
        ("dare_ties_svd", "ties_svd", {"density": 1.0}),
    ):
        ours = three()
        trimtab.combine.adapters(ours, WEIGHTS, into="new", method=thinned, density=1.0)
        trimtab.combine.adapters(ours, WEIGHTS, into="other", method=whole, **options)
        one, other = changes(ours, "new"), changes(ours, "other")
        for site in SITES:
            torch.testing.assert_close(one[site], other[site], rtol=1e-4, atol=1e-5)


def test_the_largest_share() -> None:
    tensor = torch.tensor([[3.0, -5.0], [0.1, 4.0]])
    kept = largest(tensor, 0.5, torch.Generator())
    assert torch.equal(kept, torch.tensor([[0.0, -5.0], [0.0, 4.0]]))


def test_anchored_adapters_combine_by_what_they_change() -> None:
    ours = net()
    for name in "ab":
        trimtab.attach(ours, trimtab.LoRA(rank=3), ["first"], name=name)
        trimtab.init.pissa(ours, name)
        fill(ours, ours._trimtab.adapter(name))
    trimtab.combine.adapters(ours, {"a": 0.5, "b": 2}, into="new", method="cat")
    each = {name: changes(ours, name)["first"] for name in ("a", "b", "new")}
    torch.testing.assert_close(each["new"], 0.5 * each["a"] + 2 * each["b"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [trimtab.LoHa(rank=2), trimtab.DoRA(rank=2), trimtab.OFT(block=4)],
    ids=lambda m: m.name,
)
def test_any_change_of_a_matrix_becomes_a_lora(method: Any) -> None:
    ours, ids = net(), torch.randint(0, 20, (4, 6))
    fill(ours, trimtab.attach(ours, method, ["first"], name="a"))
    expected = ours(ids)
    trimtab.combine.adapters(ours, {"a": 1.0}, into="new", method="svd", rank=12)
    assert {m.name for _, m in ours._trimtab.adapter("new").entries} == {"lora"}
    torch.testing.assert_close(ours(ids), expected, rtol=1e-4, atol=1e-5)


def test_biases_are_combined_and_one_head_is_taken_over() -> None:
    ours, ids = net(), torch.randint(0, 20, (4, 6))
    both = {"first": [trimtab.LoRA(rank=2), trimtab.BitFit()], "norm": trimtab.BitFit()}
    fill(ours, trimtab.attach(ours, both, name="a", train=["last"]))
    fill(ours, trimtab.attach(ours, both, name="b"))
    adapter = trimtab.combine.adapters(ours, {"a": 0.5, "b": 2.0}, into="new", method="cat")
    tensors = {name: ours._trimtab.adapter(name).tensors() for name in ("a", "b", "new")}
    for key in ("first.bitfit.c", "norm.bitfit.c"):
        expected = 0.5 * tensors["a"][key] + 2 * tensors["b"][key]
        torch.testing.assert_close(tensors["new"][key], expected)
    assert torch.equal(tensors["new"]["last.whole.weight"], tensors["a"]["last.whole.weight"])
    assert [(site, m.name) for site, m in adapter.entries] == [
        ("first", "lora"),
        ("first", "bitfit"),
        ("norm", "bitfit"),
        ("last", "whole"),
    ]
    trimtab.activate(ours, "a")
    alone = ours(ids)
    trimtab.combine.adapters(ours, {"a": 1.0}, into="same", method="svd")
    torch.testing.assert_close(ours(ids), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "cat", "svd"])
def test_modules_trained_whole_are_averaged_by_the_weights(method: str) -> None:
    """As a soup: by shares of one, whatever the weights sum to; of those that trained it."""
    ours = net()
    for name, train in (("a", ["last", "norm"]), ("b", ["last"]), ("c", [])):
        fill(ours, trimtab.attach(ours, trimtab.LoRA(rank=2), ["first"], name=name, train=train))
    weights = {"a": 3.0, "b": 1.0, "c": 4.0}
    trimtab.combine.adapters(ours, weights, into="new", method=method)
    tensors = {name: ours._trimtab.adapter(name).tensors() for name in ("a", "b", "new")}
    for leaf in ("weight", "bias"):
        a, b, new = (tensors[name][f"last.whole.{leaf}"] for name in ("a", "b", "new"))
        torch.testing.assert_close(new, 0.75 * a + 0.25 * b)
        assert torch.equal(tensors["new"][f"norm.whole.{leaf}"], tensors["a"][f"norm.whole.{leaf}"])


@pytest.mark.parametrize("method", METHODS)
def test_two_heads_under_every_way(method: str) -> None:
    """A mean, or a refusal by name; one head is taken over whatever the way."""
    ours, density = net(), None if method in ("svd", "linear", "cat") else 0.5
    for name in "ab":
        train = ["last"]
        fill(ours, trimtab.attach(ours, trimtab.LoRA(rank=2), ["first"], name=name, train=train))
    fill(ours, trimtab.attach(ours, trimtab.LoRA(rank=2), ["first"], name="c"))
    options: Any = {"method": method, "density": density}
    trimtab.combine.adapters(ours, {"a": 0.5, "c": 0.5}, into="one", **options)
    if density is None:
        trimtab.combine.adapters(ours, {"a": 0.5, "b": 0.5}, into="two", **options)
        with pytest.raises(trimtab.InputError, match=r"takes weights above 0, not \[1.0, -0.5\]"):
            trimtab.combine.adapters(ours, {"a": 1.0, "b": -0.5}, into="less", **options)
    else:
        with pytest.raises(trimtab.InputError, match=rf"whole by 'a' and 'b', and {method} keeps"):
            trimtab.combine.adapters(ours, {"a": 0.5, "b": 0.5}, into="two", **options)


def test_biases_alone_need_no_rank() -> None:
    ours = net()
    for name in "ab":
        fill(ours, trimtab.attach(ours, trimtab.BitFit(), name=name))
    with pytest.raises(trimtab.InputError, match="rank: none of the adapters changes a matrix"):
        trimtab.combine.adapters(ours, {"a": 0.5, "b": 0.5}, into="new", rank=3)
    trimtab.combine.adapters(ours, {"a": 0.5, "b": 0.5}, into="new")
    tensors = {name: ours._trimtab.adapter(name).tensors() for name in ("a", "b", "new")}
    for key, shift in tensors["new"].items():
        torch.testing.assert_close(shift, 0.5 * tensors["a"][key] + 0.5 * tensors["b"][key])


def test_it_trains_is_saved_and_read_by_hf_peft(tmp_path: Path) -> None:
    ours, ids = three((2, 5, 3)), torch.randint(0, 20, (4, 6))
    trimtab.combine.adapters(ours, WEIGHTS, into="new", method="cat")
    assert trimtab.parameters(ours) == ours._trimtab.adapter("new").parameters()
    trimtab.save(ours, tmp_path / "new", name="new", format="peft")
    there = peft.PeftModel.from_pretrained(net(), tmp_path / "new").eval()
    torch.testing.assert_close(there(ids), ours(ids), rtol=1e-4, atol=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown adapter": ({"weights": {"d": 1.0}}, "no adapter is called 'd'"),
    "no adapter": ({"weights": {}}, "no adapter is named"),
    "weight": ({"weights": {"a": float("nan")}}, "'a' must be finite"),
    "taken": ({"into": "b"}, "already carries an adapter 'b'"),
    "method": ({"method": "tise"}, "called 'tise'; nearest: 'ties'"),
    "no mapping": ({"weights": ["a", "b"]}, "and not .'a', 'b'."),
    "no number": ({"weights": {"a": "1"}}, "'a' must be finite, a number, not '1'"),
    "text for a density": ({"method": "ties", "density": "0.5"}, "not '0.5'"),
    "a fraction of a rank": ({"method": "svd", "rank": 2.5}, "a whole number"),
    "no sign is elected": ({"method": "linear", "sign": "frequency"}, "leave sign out"),
    "nothing is drawn": ({"method": "svd", "seed": 3}, "svd draws nothing at random"),
    "a seed of what is largest": (
        {"method": "ties", "density": 0.5, "seed": 3},
        "ties draws nothing at random: leave seed out",
    ),
    "no density": ({"method": "ties"}, r"density must lie in \(0, 1\], not None"),
    "density": ({"method": "ties", "density": 1.5}, r"\(0, 1\], not 1.5"),
    "no density is used": ({"method": "cat", "density": 0.5}, "leave density out"),
    "rank": ({"method": "cat", "rank": 3}, "cat has the sum of the ranks"),
    "no rank": ({"method": "svd", "rank": 0}, "at least 1"),
    "sign": ({"method": "ties", "density": 0.5, "sign": "most"}, "not 'most'"),
    "ranks": ({"method": "linear"}, r"of one rank, and at 'embed' there are \[2, 4\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    options, message = REFUSED[case]
    ours = three((4, 2, 4))
    before = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    with pytest.raises(trimtab.InputError, match=message):
        trimtab.combine.adapters(
            ours, **{"weights": {"a": 1.0, "b": 1.0}, "into": "new", **options}
        )
    after = ours.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert ours._trimtab.switch.active == ("c",)


def test_what_is_no_change_of_a_matrix_is_refused() -> None:
    ours = three()
    trimtab.attach(ours, {"norm": trimtab.LNTuning()}, name="norms")
    with pytest.raises(
        trimtab.InputError, match=r"'norms' has ln at 'norm'.*no change of a matrix"
    ):
        trimtab.combine.adapters(ours, {"a": 1.0, "norms": 1.0}, into="new")
    trimtab.attach(ours, trimtab.DoRA(rank=4), ["first"], name="dora")
    with pytest.raises(
        trimtab.InputError, match=r"ties combines factors.*dora at 'first'.*ties_svd"
    ):
        trimtab.combine.adapters(ours, {"a": 1, "dora": 1}, into="new", method="ties", density=0.5)
    trimtab.attach(ours, trimtab.LoRA(), ["first"], name="head", train=["last"])
    with pytest.raises(trimtab.InputError, match="'last' is trained whole by one adapter"):
        trimtab.combine.adapters(ours, {"a": 1.0, "head": 1.0}, into="new")
    trimtab.attach(ours, trimtab.Full(), name="full")
    with pytest.raises(trimtab.InputError, match="'full' trains the base's own"):
        trimtab.combine.adapters(ours, {"full": 1.0}, into="new")


def test_every_way_has_a_name_of_hf_peft() -> None:
    assert set(METHODS) == {
        *("svd", "linear", "cat", "ties", "ties_svd", "dare_ties", "dare_linear"),
        *("dare_ties_svd", "dare_linear_svd", "magnitude_prune", "magnitude_prune_svd"),
    }
    for method in METHODS:
        Way(method, None if method in ("svd", "linear", "cat") else 0.5)
