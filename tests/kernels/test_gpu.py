"""The kernels in Triton against the laws that they accelerate.

On a CUDA device where there is one; else by Triton's interpreter, in a process of its own, where
Triton is installed. The interpreter multiplies no bf16.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaConfig, LlamaForCausalLM

import trimtab
from trimtab.core.errors import InputError
from trimtab.kernels import gpu
from trimtab.kernels.cross_entropy import CrossEntropy
from trimtab.kernels.gpu import choice
from trimtab.kernels.lora import _by_torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNS = gpu.here() and (INTERPRETED or torch.cuda.is_available())
REASON = "no CUDA device: its own process runs it" if gpu.here() else "Triton is not installed"
on_gpu = pytest.mark.skipif(not RUNS, reason=REASON)
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")

HALF = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]
NEAR = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # by their own rounding
in_each_dtype = pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
Follow = Callable[[Any, str], list[Any]]


@pytest.mark.skipif(not gpu.here(), reason="Triton is not installed")
@pytest.mark.skipif(RUNS, reason="they run here")
def test_by_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Products go by a small tile, unmeasured; grows with the name of each."""
    seen: list[str] = []

    def choose(name: str, *args: Any) -> tuple[Tensor, Tensor]:
        seen.append(name)
        gpu.choices[name] = "triton 64 x 64 x 32"
        return choice.choose(name, *args)

    monkeypatch.setattr(gpu, "choose", choose)
    return seen


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(gpu.choices)
    gpu.choices.clear()
    yield
    gpu.choices.clear()
    gpu.choices.update(before)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=gpu.DEVICE).to(dtype)


def near(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    away = (found.double() - exact.double()).norm() / exact.double().norm().clamp(min=1e-30)
    assert away <= NEAR[dtype], float(away)


# One product.

SHAPES = [(70, 37, 130, 3), (1, 64, 5, 1), (300, 192, 261, 20), (128, 128, 128, 16)]


@on_gpu
@in_each_dtype
@pytest.mark.parametrize("transposed", [False, True], ids=["W", "W transposed"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_equals_its_equation(
    shape: tuple[int, int, int, int], bias: bool, transposed: bool, dtype: torch.dtype
) -> None:
    """By every tile; scaled so that no term is lost in another."""
    from trimtab.kernels.gpu.low_rank import WAYS

    rows, columns, outputs, rank = shape
    x = random(rows, columns, dtype=dtype)
    W = random(outputs, columns, dtype=dtype)
    F1, F2 = random(rank, columns, dtype=dtype), random(outputs, rank, dtype=dtype)
    if transposed:
        W, F1, F2 = (one.T.contiguous().T for one in (W, F1, F2))
    b = random(outputs, dtype=dtype) if bias else None
    wide = [None if one is None else one.double() for one in (x, W, b, F1, F2)]
    exact, down = _by_torch(*wide, 0.7)
    for name, way in WAYS.items():
        try:
            y, low = way(x, W, b, F1, F2, 0.7)
        except Exception as error:
            if type(error).__name__ == "OutOfResources":  # fp32 takes twice the room
                continue
            raise
        assert y.dtype == low.dtype == dtype, name
        near(y, exact, dtype)
        near(low, down, dtype)


# The law through it.


def adapted(dtype: torch.dtype, bias: bool = True, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 45, bias=bias)).to(dtype)
    cases.perturb(trimtab.attach(model, trimtab.LoRA(**{"rank": 5} | options), "0"), by=0.3)
    return model.to(gpu.DEVICE)


def run(model: nn.Module, x: Tensor, again: bool = False) -> list[Tensor]:
    """The output and the gradients of x and of all parameters; with `again` those of these."""
    x = x.detach().clone().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), device=y.device).reshape(y.shape)
    of = [x, *trimtab.parameters(model)]
    found = list(torch.autograd.grad((y.double() * weights).sum(), of, create_graph=again))
    if again:
        found += torch.autograd.grad(sum(one.double().square().sum() for one in found), of)
    return [y.detach(), *found]


@on_gpu
@in_each_dtype
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_lora_equals_its_law(bias: bool, dtype: torch.dtype, taken: list[str]) -> None:
    model, x = adapted(dtype, bias), random(2, 33, 70, dtype=dtype)
    found = run(model, x)
    assert len(taken) == 2, "forward, and backward for x"
    assert {one.dtype for one in found[2:]} == {torch.float32}
    with trimtab.kernels.disabled():
        exact = run(model.double(), x.double())
    assert len(taken) == 2
    for one, other in zip(found, exact, strict=True):
        near(one, other, dtype)


@on_gpu
def test_a_second_derivative_goes_past_it(taken: list[str]) -> None:
    model, x = adapted(torch.float32), random(2, 9, 70)
    found = run(model, x, again=True)
    assert len(taken) == 1
    with trimtab.kernels.disabled():
        exact = run(model.double(), x.double(), again=True)
    for one, other in zip(found, exact, strict=True):
        near(one, other, torch.float32)


@on_gpu
@pytest.mark.parametrize("make", [lambda: adapted(torch.float32, rank=200), None])
def test_it_stands_back(make: Callable[[], nn.Module] | None, taken: list[str]) -> None:
    """Of too large a rank, and in double precision."""
    model = make() if make else adapted(torch.float32).double()
    model(random(3, 70, dtype=model[0].weight.dtype))
    assert taken == []


# What is chosen.


def ways(counts: dict[str, int]) -> dict[str, Any]:
    def way(name: str) -> Any:
        def call(*given: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return _by_torch(*given)

        return call

    return {"torch": way("torch"), "tile": way("tile")}


GIVEN = (torch.ones(2, 3), torch.ones(4, 3), None, torch.ones(1, 3), torch.ones(4, 1), 1.0)


def test_what_is_chosen_is_taken_unmeasured() -> None:
    counts: dict[str, int] = {}
    gpu.choices["product"] = "tile"
    y, down = choice.choose("product", ways(counts), GIVEN, mode="measure")
    assert counts == {"tile": 1}
    assert torch.equal(y, torch.full((2, 4), 6.0))
    assert torch.equal(down, torch.full((2, 1), 3.0))


def test_a_choice_that_there_is_not_is_an_error() -> None:
    gpu.choices["product"] = "tyle"
    with pytest.raises(InputError, match="is 'tyle', and the ways are torch, tile"):
        choice.choose("product", ways({}), GIVEN)


@pytest.mark.skipif(not gpu.here(), reason="Triton is not installed")
@pytest.mark.parametrize("slow", ["torch", "tile"])
def test_the_faster_way_is_measured_once(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, int] = {}
    two = ways(counts)
    monkeypatch.setattr(choice, "_seconds", lambda way, given: float(way is two[slow]))
    for _ in range(3):
        choice.choose("product", two, GIVEN, mode="measure")
    (fast,) = {"torch", "tile"} - {slow}
    assert gpu.choices == {"product": fast}
    assert counts == {fast: 3}


@pytest.mark.skipif(not gpu.here(), reason="Triton is not installed")
def test_torch_takes_no_part_where_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, int] = {}
    monkeypatch.setattr(choice, "_seconds", lambda way, given: 1.0)
    choice.choose("product", ways(counts), GIVEN, mode="triton")
    assert counts == {"tile": 1}


@pytest.mark.skipif(not gpu.here(), reason="Triton is not installed")
def test_a_tile_that_the_device_does_not_hold_is_left_out() -> None:
    from triton.runtime.errors import OutOfResources

    def large(*given: Any) -> Any:
        raise OutOfResources(2, 1, "shared memory")

    choice.choose("product", {**ways({}), "tile": large}, GIVEN, mode="measure")
    assert gpu.choices == {"product": "torch"}


@on_gpu
def test_texts_of_like_length_are_measured_together() -> None:
    from trimtab.kernels.gpu.low_rank import name

    def of(rows: int, W: Tensor) -> str:
        return name(torch.ones(rows, 3), W, None, torch.ones(2, 3), torch.ones(4, 2), 1.0)

    W = torch.ones(4, 3)
    assert of(33, W) == of(64, W) == "low rank 64 x 3 x 4, rank 2, float32"
    assert of(64, W) != of(65, W)
    assert of(64, W) != of(64, W.T.contiguous().T)


# An adapter for each example.

ROUTES = [["a", "b", "c", "a", "b", None], [None, "c", "c"], ["b"] * 6, [None, None, "a"]]


@on_gpu
@in_each_dtype
@pytest.mark.parametrize("tokens", [1, 5, 70])
@pytest.mark.parametrize("route", ROUTES, ids=str)
@torch.no_grad()
def test_mixed_adapters_equal_each_by_itself(
    route: list[str | None], tokens: int, dtype: torch.dtype, follow: Follow
) -> None:
    ran = follow(gpu, "routed_")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(150, 133)).to(dtype)
    for adapter, rank in {"a": 2, "b": 20, "c": 5}.items():
        cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=rank), "0", name=adapter), by=0.3)
    trimtab.activate(model.to(gpu.DEVICE), trimtab.Route("a", "b", "c"))
    x = random(6, tokens, 150, dtype=dtype)
    with trimtab.given(model, route=route):
        y = model(x)
        assert len(ran) == 1
        with trimtab.kernels.disabled():
            exact = model.double()(x.double())
    near(y, exact, dtype)
    for part, own, adapter in zip(y.chunk(len(route)), x.chunk(len(route)), route, strict=True):
        if adapter is None:
            base = linear(own.double(), model[0].weight, model[0].bias)
            near(part, base, dtype)


# The loss of a frozen head.


@on_gpu
@in_each_dtype
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("classes", [33, 4096, 9001])
def test_cross_entropy_and_its_gradient(
    classes: int, bias: bool, dtype: torch.dtype, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of three rows."""
    monkeypatch.setattr("trimtab.kernels.cross_entropy._CHUNK", 3 * classes)
    ran = follow(gpu, "cross_entropy_")
    torch.manual_seed(0)
    h, W = random(7, 24, dtype=dtype).requires_grad_(), random(classes, 24, dtype=dtype)
    b = random(classes, dtype=dtype) if bias else None
    labels = torch.randint(classes, (7,), device=gpu.DEVICE)
    labels[0], labels[1] = 0, classes - 1
    losses = CrossEntropy.apply(h, W, b, labels)
    found = torch.autograd.grad(losses.sum(), h)[0]
    assert len(ran) == (3 if gpu.DEVICE == "cpu" else 1)
    wide = h.detach().double().requires_grad_()
    z = linear(wide, W.double(), None if b is None else b.double())
    exact = cross_entropy(z, labels, reduction="none")
    near(losses, exact, dtype)
    near(found, torch.autograd.grad(exact.sum(), wide)[0], dtype)


@on_gpu
def test_logits_far_apart_and_ruled_out() -> None:
    torch.manual_seed(0)
    z = 300 * random(5, 9000)
    z[1, :8192] = float("-inf")  # the first two blocks of the row
    z[2, 4096:] = float("-inf")
    labels = torch.tensor([1, 8999, 0, 4096, 77], device=gpu.DEVICE)
    exact = cross_entropy(z.double(), labels, reduction="none")
    slopes = z.double().softmax(-1)
    slopes[torch.arange(5), labels] -= 1
    before = z.clone()
    found = gpu.cross_entropy_(z, labels, False)
    assert torch.equal(z, before), "without slopes the logits stay"
    assert torch.equal(gpu.cross_entropy_(z, labels, True), found)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(z.double(), slopes, rtol=1e-4, atol=1e-5)


# All of them together.


@on_gpu
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "made again"])
def test_a_step_of_a_language_model(checkpointing: bool, taken: list[str], follow: Follow) -> None:
    ran = follow(gpu, "cross_entropy_")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, vocab_size=1100)
    model = LlamaForCausalLM(config).train()
    cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=3)))
    model.to(gpu.DEVICE)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(1100, (2, 9), device=gpu.DEVICE)

    def gradients() -> list[Tensor]:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        return [loss.detach(), *torch.autograd.grad(loss, list(trimtab.parameters(model)))]

    found = gradients()
    maps = 2 * 7
    # Backward, the first block's three maps of the embeddings give those no gradient.
    assert len(taken) == (2 if checkpointing else 1) * maps + maps - (0 if checkpointing else 3)
    assert len(ran) == 1
    with trimtab.kernels.disabled():
        exact = gradients()
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


# For a device that need not be there.

NUMBERS = {"z": None, "x": None, "y": None, "W": None, "b": None, "F1": None, "F2": None}
NUMBERS |= {"A": None, "B": None, "down": None, "which": "i64", "labels": "i64", "losses": "fp32"}
WARPS_OF = {"num_warps": 4, "num_stages": 3}


def compiled(kernel: Any, dtype: str, capability: int, **constants: Any) -> Any:
    """As it is called with aligned tensors whose sizes sixteen divides."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {key: constants.pop(key, value) for key, value in WARPS_OF.items()}
    names = kernel.arg_names
    kinds = {name: f"*{NUMBERS[name] or dtype}" for name in names if name in NUMBERS}
    kinds = {name: kinds.get(name, "fp32" if name == "scale" else "i32") for name in names}
    kinds |= dict.fromkeys(constants, "constexpr")
    aligned = [i for i, name in enumerate(names) if kinds[name] not in ("constexpr", "fp32")]
    source = ASTSource(
        fn=kernel,
        signature=kinds,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.skipif(not gpu.here(), reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="what is interpreted is not compiled")
@pytest.mark.parametrize(("capability", "dtype"), [(80, "bf16"), (80, "fp32"), (90, "bf16")])
def test_every_kernel_is_compiled(capability: int, dtype: str) -> None:
    """bf16 goes to the tensor cores, without a spill to memory."""
    from trimtab.kernels.gpu import cross_entropy, low_rank, routed

    sides: dict[str, Any] = {"RANK": 16, "BM": 64}
    whole = {"BIAS": True, "WHOLE": True, "RANK": 16, "GROUP": 8}
    forward = dict.fromkeys(("W_column", "F1_column", "F2_column"), 1)
    backward = dict.fromkeys(("W_row", "F1_row", "F2_row"), 1)
    tile = low_rank.WAYS["triton 128 x 128 x 64"].keywords
    products = [
        compiled(low_rank._product, dtype, capability, **whole, **forward, **tile),
        compiled(low_rank._product, dtype, capability, **whole, **backward, **tile),
        compiled(routed._down, dtype, capability, **sides, BK=128),
        compiled(routed._up, dtype, capability, **sides, BN=128),
    ]
    # Sizes of one are constants.
    one_row = {"rows": 1, "rank": 1, **whole, "WHOLE": False, **forward, **tile}
    compiled(low_rank._product, dtype, capability, **one_row)
    one_token = {"tokens": 1, "rank": 1, "RANK": 16, "BM": 16}
    compiled(routed._down, dtype, capability, **one_token, BK=128)
    compiled(routed._up, dtype, capability, **one_token, BN=128)
    loss = {"SLOPES": True, "BLOCK": 4096, "num_warps": 8}
    rows = compiled(cross_entropy._row, dtype, capability, **loss)
    for one in products:
        assert ("mma" in one.asm["ptx"]) == (dtype == "bf16")
        assert one.metadata.shared <= 160 << 10
    assert all("st.local" not in one.asm["ptx"] for one in [*products, rows])


# Where it is asked for.


@on_gpu
def test_what_it_takes() -> None:
    x = random(2, 3)
    assert not gpu.takes(x), "whose results have no graph"
    with torch.no_grad():
        assert gpu.takes(x)
        assert gpu.takes(x, None, nn.Parameter(x))
        assert not gpu.takes(x, x.double())
        assert not gpu.takes(x[:0])
        assert not gpu.takes(x.to("meta"))


def loads(environment: dict[str, str]) -> str:
    """Whether Triton was imported by a training step on the processor."""
    code = (
        "import sys, torch, trimtab\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 4))\n"
        "trimtab.attach(model, trimtab.LoRA(rank=2), '0')\n"
        "model(torch.randn(2, 4)).sum().backward()\n"
        "print('trimtab.kernels.gpu.low_rank' in sys.modules, 'triton' in sys.modules)\n"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "TRIMTAB_GPU")}
    command = [sys.executable, "-c", code]
    told = subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, timeout=120
    )
    return told.stdout.strip() or told.stderr.splitlines()[-1]


def test_it_is_imported_for_no_tensor_on_the_processor() -> None:
    assert loads({}) == "False False"


@on_gpu
def test_the_environment_turns_it_off() -> None:
    interpreted = {"TRITON_INTERPRET": "1"}
    assert loads({**interpreted, "TRIMTAB_GPU": "triton"}) == "True True"
    assert loads({**interpreted, "TRIMTAB_GPU": "torch"}) == "False False"
    assert loads({**interpreted, "TRIMTAB_KERNELS": "off"}) == "False False"


def test_a_mode_that_there_is_not_is_an_error() -> None:
    assert "TRIMTAB_GPU=fast: it is one of measure, triton, torch" in loads({"TRIMTAB_GPU": "fast"})
