"""Where HF PEFT has the method: with the same parameters, the same outputs and the same weights."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import trimtab
from trimtab.core.method import Method

MODULES: dict[str, Any] = {
    "linear": (lambda: nn.Linear(12, 8), lambda: torch.randn(5, 12)),
    "Conv1D": (lambda: Conv1D(8, 12), lambda: torch.randn(5, 12)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), lambda: torch.randn(2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2), lambda: torch.randn(2, 4, 9, 9)),
    "1x1 conv2d": (lambda: nn.Conv2d(12, 6, 1), lambda: torch.randn(2, 12, 4, 4)),
    "embedding": (lambda: nn.Embedding(20, 12), lambda: torch.randint(0, 20, (3, 5))),
    "norm": (lambda: nn.LayerNorm(12), lambda: 1 + torch.randn(5, 12)),
}


def both(kind: str, method: Method, config: Any, names: dict[str, str]) -> tuple[Any, Any, Tensor]:
    """(ours, theirs, input), with theirs given our changed parameters."""
    make, x = MODULES[kind]
    torch.manual_seed(0)
    ours, theirs = nn.Sequential(make()), nn.Sequential(make())
    theirs.load_state_dict(ours.state_dict())
    adapter = trimtab.attach(ours.eval(), method, "0")
    theirs = peft.get_peft_model(theirs.eval(), config)
    own = dict(theirs.named_parameters())
    (_, delta), *_ = adapter.deltas()
    for name, suffix in names.items():
        (theirs_own,) = (t for key, t in own.items() if key.endswith(suffix))
        tensor = delta.tensors()[name]
        with torch.no_grad():
            if name in SAME_START:
                torch.testing.assert_close(theirs_own.reshape(tensor.shape), tensor)
            tensor += 0.1 * torch.randn(tensor.shape)
            theirs_own.copy_(tensor.reshape(theirs_own.shape))
    return ours, theirs, x()


SAME_START = {"m", "E", "S", "t", "weight", "bias", "b", "d"} | {
    *("C", "C_b", "scale", "gain", "strength", "H", "R", "s", "theta", "alpha"),
}


def same(ours: Any, theirs: Any, x: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(ours(x), theirs(x), **tolerance)
    trimtab.merge(ours)
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(ours.state_dict()["0.weight"], merged[0].weight, **tolerance)


LORA = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}
EMBEDDING = {"A": "lora_embedding_A.default", "B": "lora_embedding_B.default"}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("kind", ["linear", "Conv1D", "conv1d", "conv2d", "embedding"])
@pytest.mark.parametrize("rslora", [False, True])
def test_dora(kind: str, rslora: bool) -> None:
    method = trimtab.DoRA(rank=3, alpha=5, rslora=rslora)
    options: Any = {"r": 3, "lora_alpha": 5, "use_rslora": rslora, "use_dora": True}
    config = peft.LoraConfig(target_modules=["0"], **options)
    factors = EMBEDDING if kind == "embedding" else LORA
    names = {"m": "lora_magnitude_vector.default.weight", **factors}
    ours, theirs, x = both(kind, method, config, names)
    for one in (ours, theirs):
        (one(x) ** 2).sum().backward()
    own = dict(theirs.named_parameters())
    (_, delta), *_ = ours._trimtab.adapter(None).deltas()
    for name, suffix in names.items():
        (theirs_own,) = (t for key, t in own.items() if key.endswith(suffix))
        ours_own = delta.tensors()[name]
        assert ours_own.grad is not None
        expected = theirs_own.grad.reshape(ours_own.shape)
        torch.testing.assert_close(ours_own.grad, expected, rtol=1e-4, atol=1e-4)
    same(ours, theirs, x)


OFT = {
    "exact": ({}, {"use_cayley_neumann": False}),
    "neumann": ({"neumann": 5}, {}),
    "three terms": ({"neumann": 3}, {"num_cayley_neumann_terms": 3}),
    "seven terms": ({"neumann": 7}, {"num_cayley_neumann_terms": 7}),
    "two terms": ({"neumann": 2}, {"num_cayley_neumann_terms": 2}),
    "shared": ({"share": True}, {"use_cayley_neumann": False, "block_share": True}),
    "bounded": ({"eps": 0.05}, {"use_cayley_neumann": False, "coft": True, "eps": 0.05}),
    "odd size": ({"block": 5}, {"use_cayley_neumann": False, "oft_block_size": 5}),
    "blocks": ({"blocks": 3}, {"use_cayley_neumann": False, "r": 3, "oft_block_size": 0}),
}


@pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`")
@pytest.mark.parametrize("options", OFT)
@pytest.mark.parametrize("kind", ["linear", "1x1 conv2d", "embedding"])
def test_oft(kind: str, options: str) -> None:
    mine, other = OFT[options]
    config = peft.OFTConfig(target_modules=["0"], **{"oft_block_size": 4, **other})
    part = "oft_embedding_R" if kind == "embedding" else "oft_R"
    method = trimtab.OFT(**(mine if mine.keys() & {"block", "blocks"} else {"block": 4, **mine}))
    ours, theirs, x = both(kind, method, config, {"S": f"{part}.default.weight"})
    same(ours, theirs, x)


def test_oft_over_patches() -> None:
    """Their forward at larger kernels sums overlapping patches; their merged weights are right."""
    config = peft.OFTConfig(target_modules=["0"], oft_block_size=4)
    method = trimtab.OFT(block=4, neumann=5)
    ours, theirs, x = both("conv2d", method, config, {"S": "oft_R.default.weight"})
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(ours(x), merged(x))


class Blocks:
    """What their CUDA kernel computes; without it they have one factor, whatever is asked for."""

    @staticmethod
    def forward(R: Tensor) -> list[Tensor]:
        return [torch.stack([torch.block_diag(*factor) for factor in R])]


BOFT = {
    "one factor": ({}, {}),
    "two factors": ({"block": 2, "factors": 2}, {}),
    "wider": ({"block": 6, "factors": 2}, {}),
    "number": ({"blocks": 2, "factors": 2}, {"boft_block_size": 0, "boft_block_num": 2}),
    "odd size": ({"block": 3}, {}),
}


@pytest.mark.parametrize("options", BOFT)
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_boft(kind: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft.tuners.boft.layer, "get_fbd_cuda", lambda: Blocks)
    mine, other = BOFT[options]
    method = trimtab.BOFT(**mine)
    fields = {"boft_block_size": method.block, "boft_n_butterfly_factor": method.factors, **other}
    config = peft.BOFTConfig(target_modules=["0"], **fields)
    names = {"R": "boft_R.default", "s": "boft_s.default"}
    same(*both(kind, method, config, names), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The symmetric initialization can NOT")
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize(("rank", "orthogonal"), [(4, False), (5, False), (4, True)])
def test_hra(kind: str, rank: int, orthogonal: bool) -> None:
    config = peft.HRAConfig(target_modules=["0"], r=rank, apply_GS=orthogonal)
    method = trimtab.HRA(rank=rank, gram_schmidt=orthogonal)
    same(*both(kind, method, config, {"U": "hra_u.default"}), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group", [2, 4, 8])
@pytest.mark.parametrize("angles", [1, 2, 4])
def test_road(angles: int, group: int) -> None:
    config = peft.RoadConfig(target_modules=["0"], variant=f"road_{angles}", group_size=group)
    method = trimtab.Road(angles=angles, group=group)
    names = {"theta": "road_theta.default", "alpha": "road_alpha.default"}
    ours, theirs, x = both("linear", method, config, names)
    same(ours, theirs, x)
    torch.testing.assert_close(ours(x), theirs.base_model(x))  # the merged bias too


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_adalora(kind: str) -> None:
    config = peft.AdaLoraConfig(
        target_modules=["0"], init_r=4, target_r=2, lora_alpha=6, total_step=10
    )
    method = trimtab.AdaLoRA(rank=4, target=2, alpha=6)
    names = {"P": "lora_B.default", "Q": "lora_A.default", "E": "lora_E.default"}
    ours, theirs, x = both(kind, method, config, names)
    same(ours, theirs, x, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_ln() -> None:
    names = {name: f"ln_tuning_layers.default.{name}" for name in ("weight", "bias")}
    config = peft.LNTuningConfig(target_modules=["0"])
    same(*both("norm", trimtab.LNTuning(), config, names))


def test_tokens() -> None:
    config = peft.TrainableTokensConfig(target_modules=["0"], token_indices=[3, 17, 4])
    names = {"t": "trainable_tokens_delta.default"}
    same(*both("embedding", trimtab.Tokens(rows=(3, 17, 4)), config, names))


W1, W2 = {"C": "lokr_w1.default"}, {"D": "lokr_w2.default"}
LOW1 = {"C_b": "lokr_w1_a.default", "C_a": "lokr_w1_b.default"}
LOW2 = {"D_b": "lokr_w2_a.default", "D_a": "lokr_w2_b.default"}
TUCKER = {**LOW2, "T": "lokr_t2.default"}
LOKR: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "whole": ("linear", {"rank": 4}, W1 | W2),
    "low": ("linear", {"rank": 1}, W1 | LOW2),
    "low twice": ("linear", {"rank": 1, "both": True}, LOW1 | LOW2),
    "factor": ("linear", {"rank": 2, "factor": 1}, W1 | LOW2),
    "factor that does not divide": ("linear", {"rank": 2, "factor": 3}, W1 | W2),
    "large factor": ("linear", {"rank": 2, "factor": 4}, W1 | W2),
    "conv2d": ("conv2d", {"rank": 1, "factor": 1}, W1 | LOW2),
    "conv2d, whole": ("conv2d", {"rank": 4}, W1 | W2),
    "conv2d, tucker": ("conv2d", {"rank": 2, "factor": 1, "tucker": True}, W1 | TUCKER),
    "1x1": ("1x1 conv2d", {"rank": 2, "factor": 1}, W1 | LOW2),
    "conv1d": ("conv1d", {"rank": 2, "factor": 1}, W1 | LOW2),
    "conv1d, tucker": ("conv1d", {"rank": 2, "factor": 1, "tucker": True}, W1 | TUCKER),
}


@pytest.mark.parametrize(("kind", "options", "names"), LOKR.values(), ids=list(LOKR))
def test_lokr(kind: str, options: dict[str, Any], names: dict[str, str]) -> None:
    fields = {
        "r": options["rank"],
        "decompose_factor": options.get("factor", -1),
        "decompose_both": options.get("both", False),
        "use_effective_conv2d": options.get("tucker", False),
    }
    config = peft.LoKrConfig(target_modules=["0"], alpha=3, **fields)
    same(*both(kind, trimtab.LoKr(alpha=3, **options), config, names))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize(
    "kind", ["linear", "Conv1D", "conv1d", "conv2d", "1x1 conv2d", "embedding"]
)
def test_hira(kind: str) -> None:
    part = "hira_embedding" if kind == "embedding" else "hira"
    names = {name: f"{part}_{name}.default" for name in "AB"}
    config = peft.HiraConfig(target_modules=["0"], r=3)
    same(*both(kind, trimtab.HiRA(rank=3), config, names))


DELORA = {"A": "delora_A.default", "B": "delora_B.default", "strength": "delora_lambda.default"}
GRALORA = {"A": "gralora_A.default", "B": "gralora_B.default"}
HYBRID = {"G": "gralora_A_general.default.weight", "H": "gralora_B_general.default.weight"}
FURTHER: dict[str, tuple[str, Method, Any, dict[str, str]]] = {
    "delora": (
        "linear",
        trimtab.DeLoRA(rank=3, strength=4, anchored=False),
        peft.DeloraConfig(target_modules=["0"], r=3, delora_lambda=4),
        DELORA,
    ),
    "gralora": (
        "linear",
        trimtab.GraLoRA(rank=8, alpha=6, blocks=4),
        peft.GraloraConfig(target_modules=["0"], r=8, alpha=6, gralora_k=4),
        GRALORA,
    ),
    "gralora, hybrid": (
        "Conv1D",
        trimtab.GraLoRA(rank=4, hybrid=3),
        peft.GraloraConfig(target_modules=["0"], r=4, hybrid_r=3, fan_in_fan_out=True),
        GRALORA | HYBRID,
    ),
    "randlora": (
        "linear",
        trimtab.RandLoRA(rank=3, alpha=5),
        peft.RandLoraConfig(target_modules=["0"], r=3, randlora_alpha=5),
        {"scale": "randlora_lambda.default", "gain": "randlora_gamma.default"},
    ),
    "randlora, very sparse": (
        "Conv1D",
        trimtab.RandLoRA(rank=3, very_sparse=True, seed=3),
        peft.RandLoraConfig(
            target_modules=["0"],
            r=3,
            very_sparse=True,
            projection_prng_key=3,
            fan_in_fan_out=True,
        ),
        {"scale": "randlora_lambda.default", "gain": "randlora_gamma.default"},
    ),
}


@pytest.mark.parametrize(("kind", "method", "config", "names"), FURTHER.values(), ids=list(FURTHER))
def test_further(kind: str, method: Method, config: Any, names: dict[str, str]) -> None:
    same(*both(kind, method, config, names), rtol=1e-4, atol=1e-5)


FOURIERFT = {
    "linear": ("linear", {"n_frequency": 20}, {"n_frequency": 20}),
    "Conv1D": ("Conv1D", {"n_frequency": 20}, {"n_frequency": 20, "fan_in_fan_out": True}),
    "every one": ("linear", {"n_frequency": 5000}, {"n_frequency": 96}),
    "scaled": (
        "linear",
        {"n_frequency": 9, "scaling": 20.0, "seed": 3},
        {"n_frequency": 9, "scaling": 20.0, "random_loc_seed": 3},
    ),
}


@pytest.mark.parametrize(("kind", "mine", "other"), FOURIERFT.values(), ids=list(FOURIERFT))
def test_fourierft(kind: str, mine: dict[str, Any], other: dict[str, Any]) -> None:
    config = peft.FourierFTConfig(target_modules=["0"], **other)
    method = trimtab.FourierFT(**mine)
    same(*both(kind, method, config, {"c": "fourierft_spectrum.default"}), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_c3a(block: int) -> None:
    config = peft.C3AConfig(target_modules=["0"], block_size=block)
    method = trimtab.C3A(block_size=block)
    same(*both("linear", method, config, {"w": "c3a_kernel.default"}))


MISS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "shards that divide": ({"rank": 4}, {"r": 4}),
    "a shard cut off": ({"rank": 5}, {"r": 5}),
    "one shard": ({"rank": 12}, {"r": 12}),
    "bat": ({"rank": 4, "form": "bat"}, {"r": 4, "init_weights": "bat"}),
    "mini": (
        {"rank": 5, "form": "mini", "mini": 2},
        {"r": 5, "init_weights": "mini", "mini_r": 2},
    ),
}


@pytest.mark.parametrize(("mine", "other"), MISS.values(), ids=list(MISS))
def test_miss(mine: dict[str, Any], other: dict[str, Any]) -> None:
    config = peft.MissConfig(target_modules=["0"], **other)
    same(*both("linear", trimtab.MiSS(**mine), config, {"D": "miss_block.default"}))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly:UserWarning")
@pytest.mark.parametrize("seed", [None, 7])
def test_shira(seed: int | None) -> None:
    config = peft.ShiraConfig(target_modules=["0"], r=2, random_seed=seed)
    method = trimtab.SHiRA(rank=2, seed=seed)
    same(*both("linear", method, config, {"values": "shira_weight.default"}))


@pytest.mark.parametrize("seed", [0, 7])
def test_vera_draws_the_same(seed: int) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 20), nn.Linear(20, 3))

    ours, theirs, x = model(), model(), torch.randn(5, 12)
    config = peft.VeraConfig(target_modules=["0", "1"], r=6, projection_prng_key=seed)
    theirs = peft.get_peft_model(theirs, config)
    trimtab.attach(ours, trimtab.VeRA(rank=6, seed=seed), ["0", "1"])
    own = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
    for name, tensor in ours.state_dict().items():
        if "vera.A" in name or "vera.B" in name:
            (expected,) = (t for key, t in own.items() if key.endswith(f"vera_{name[-1]}.default"))
            assert torch.equal(tensor, expected)
    torch.manual_seed(1)
    for site in ("0", "1"):
        for name in ("b", "d"):
            mine = ours.state_dict()[f"{site}.deltas.default.vera.{name}"]
            (their,) = (
                t for k, t in own.items() if k.endswith(f"{site}.vera_lambda_{name}.default")
            )
            assert torch.equal(mine, their)
            mine += torch.randn(mine.shape)
            their.data.copy_(mine)
    torch.testing.assert_close(ours(x), theirs(x))
