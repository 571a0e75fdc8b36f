"""Whatever stands in the files: an adapter loads and computes what its files say, or is refused in
Trimtab's own words. Ten thousand mutated files, counted.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import pytest
import test_store_adapterhub
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_bytes
from torch import Tensor, nn
from torch.func import functional_call

import trimtab
from trimtab.core.adapter import carries
from trimtab.store import adapterhub, loralib
from trimtab.store.describe import describe

EXAMPLES = 2500  # of each of the four formats
bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
ALPHA = 5.0
QUERY = "bert.encoder.layer.0.attention.self.query"

NAMES = ["", "lora", "ia3", "full", "whole", "LORA", "IA3", "all-linear", "query", "classifier"]
STRANGE = ["../x", "(", ".*", "bert.pooler.dense", "bert.embeddings.LayerNorm", "none", "\ud800"]
words = st.sampled_from([*NAMES, *STRANGE, "all", "lora_only", "default", "relu", "post_add"])
numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, 10**40, 10**400, 1e308, 1e999, -1e999, 1e-300, 0.5, -0.0]),
)
plain = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.one_of(
    plain, plain, st.lists(plain, max_size=3), st.dictionaries(words, plain, max_size=2)
)
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "C64", "F4"]
FIELDS = ["target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "r"]
FIELDS += ["rank_pattern", "alpha_pattern", "layers_pattern", "lora_alpha", "use_rslora"]
FIELDS += ["lora_dropout", "peft_type", "bias", "feedforward_modules", "init_lora_weights"]
FIELDS += ["lora_bias", "fan_in_fan_out", "task_type", "use_dora", "ensure_weight_tying"]


def model() -> nn.Module:
    return cases.by_name("bert").model()


@dataclass(frozen=True)
class Format:
    """A format: what it is called, its files, how it is written, and what its files mean."""

    name: str
    config: str | None
    tensors: str
    write: Callable[[Path], object]
    use: Callable[[nn.Module, Path], bool]
    """Load it; whether the model carries it then (AdapterHub's folders are only read)."""
    meaning: Callable[[nn.Module, Path], Mapping[str, Tensor]] | None
    """The weights that the model should compute with, written out here from the files alone."""


def adapted(one: nn.Module) -> None:
    method = trimtab.LoRA(rank=2, alpha=ALPHA)
    cases.perturb(trimtab.attach(one, method, "query", train=["classifier"]))


def write_here(format: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        one = model()
        adapted(one)
        trimtab.save(one, folder, format=format)

    return write


def write_loralib(folder: Path) -> None:
    one = model()
    generator = torch.Generator().manual_seed(0)
    state = {
        f"{name}.lora_{leaf}": torch.randn(shape, generator=generator)
        for name, _ in one.named_modules()
        if name.endswith("query")
        for leaf, shape in (("A", (2, 32)), ("B", (32, 2)))
    }
    torch.save(state, folder / "lora.pt")


def use_folder(one: nn.Module, folder: Path) -> bool:
    describe(folder)
    trimtab.load(one, folder, name="fuzzed", trainable=True)
    return True


def use_loralib(one: nn.Module, folder: Path) -> bool:
    loralib.load(one, folder / "lora.pt", alpha=ALPHA, trainable=True)
    return True


def use_adapterhub(one: nn.Module, folder: Path) -> bool:
    saved = adapterhub.read(folder)
    assert saved.bottlenecks
    kept = load_bytes((folder / "adapter.safetensors").read_bytes())
    assert sum(len(each.tensors) for each in saved.bottlenecks) == len(kept)
    trimtab.load(one, folder)
    trimtab.detach(one)
    return False


def merged(
    one: nn.Module,
    tensors: Mapping[str, Tensor],
    scales: Callable[[str, int], float],
    a: str,
    b: str,
) -> dict[str, Tensor]:
    """The model's weights with every update added, and whole tensors in their place."""
    weights = {name: p.detach() for name, p in one.named_parameters()}
    for key, tensor in tensors.items():
        if key.endswith(a):
            site = key.removesuffix(a)
            scale = scales(site, tensor.shape[0])
            weights[f"{site}.weight"] = (
                weights[f"{site}.weight"] + scale * tensors[f"{site}{b}"].float() @ tensor.float()
            )
        elif not key.endswith(b):
            weights[key.replace(".whole.", ".")] = tensor.float()
    return weights


def mean_native(one: nn.Module, folder: Path) -> Mapping[str, Tensor]:
    config = json.loads((folder / "adapter.json").read_text())
    scales = {
        site: each["arguments"]
        for each in config["methods"]
        if each["method"] == "lora"
        for site in each["sites"]
    }
    tensors = load_bytes((folder / "adapter.safetensors").read_bytes())

    def scale(site: str, rank: int) -> float:
        given = {"alpha": 16.0, "rslora": False, **scales[site]}
        return given["alpha"] / (math.sqrt(rank) if given["rslora"] else rank)

    return merged(one, tensors, scale, ".lora.A", ".lora.B")


def mean_peft(one: nn.Module, folder: Path) -> Mapping[str, Tensor]:
    config = json.loads((folder / "adapter_config.json").read_text())
    kept = load_bytes((folder / "adapter_model.safetensors").read_bytes())
    tensors = {key.removeprefix("base_model.model."): t for key, t in kept.items()}

    def scale(site: str, rank: int) -> float:
        alpha = config.get("lora_alpha", 16.0)
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", site):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return merged(one, tensors, scale, ".lora_A.weight", ".lora_B.weight")


def mean_loralib(one: nn.Module, folder: Path) -> Mapping[str, Tensor]:
    state = torch.load(folder / "lora.pt", map_location="cpu", weights_only=True)
    return merged(one, state, lambda site, rank: ALPHA / rank, ".lora_A", ".lora_B")


FORMATS = [
    Format(
        "trimtab",
        "adapter.json",
        "adapter.safetensors",
        write_here("trimtab"),
        use_folder,
        mean_native,
    ),
    Format(
        "peft",
        "adapter_config.json",
        "adapter_model.safetensors",
        write_here("peft"),
        use_folder,
        mean_peft,
    ),
    Format("loralib", None, "lora.pt", write_loralib, use_loralib, mean_loralib),
    Format(
        "adapterhub",
        "adapter_config.json",
        "adapter.safetensors",
        lambda folder: test_store_adapterhub.write(folder, test_store_adapterhub.HOULSBY),
        use_adapterhub,
        None,
    ),
]


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within JSON data, but for most of the base's long list."""
    inner = {**data} if isinstance(data, dict) else {}
    inner |= dict(enumerate(data)) if isinstance(data, list) else {}
    found = [path]
    for key, value in inner.items():
        found += places(value, (*path, key)) if key != "parameters" else [(*path, key)]
    return found


def put(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copied = data.copy()
    copied[path[0]] = put(copied[path[0]], path[1:], value)
    return copied


def change_value(draw: Any, config: dict[str, Any]) -> dict[str, Any]:
    return put(config, draw(st.sampled_from(places(config))), draw(values))


def change_fields(draw: Any, config: dict[str, Any]) -> dict[str, Any]:
    return {**config, **draw(st.dictionaries(st.sampled_from(FIELDS), values, max_size=3))}


def as_bytes(config: Any) -> bytes:
    return json.dumps(config).encode()


def change_bytes(draw: Any, content: bytes) -> bytes:
    mutated = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        mutated[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(mutated)


def change_header_bytes(draw: Any, content: bytes) -> bytes:
    end = 8 + int.from_bytes(content[:8], "little")
    return change_bytes(draw, content[:end]) + content[end:]


def cut(draw: Any, content: bytes) -> bytes:
    return content[: draw(st.integers(0, len(content)))] + draw(st.binary(max_size=20))


def change_header(draw: Any, content: bytes) -> bytes:
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    tensor = draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
    field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "name", "metadata"]))
    if field == "name":
        header[draw(words)] = header.pop(tensor)
    elif field == "metadata":
        header["__metadata__"] = {"trimtab": json.dumps(draw(values))}
    elif field == "dtype":
        header[tensor]["dtype"] = draw(st.sampled_from(DTYPES))
    else:
        header[tensor][field] = draw(st.lists(st.integers(0, 128), max_size=3))
    written = json.dumps(header, ensure_ascii=False).encode(errors="replace")
    return len(written).to_bytes(8, "little") + written + content[end:]


def change_state(draw: Any, content: bytes) -> bytes:
    """One tensor of a state dict: its name, its dtype, its shape, or one value."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    key = draw(st.sampled_from(sorted(state)))
    kind = draw(st.sampled_from(["name", "dtype", "shape", "value", "another", "no tensor"]))
    if kind == "name":
        state[draw(words)] = state.pop(key)
    elif kind == "dtype":
        dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
        state[key] = state[key].to(draw(st.sampled_from(dtypes)))
    elif kind == "shape":
        state[key] = torch.ones(draw(st.lists(st.integers(0, 40), max_size=3)))
    elif kind == "value":
        number = draw(st.floats(width=32))
        state[key].view(-1)[draw(st.integers(0, state[key].numel() - 1))] = number
    elif kind == "another":
        state[f"{QUERY}.{draw(words)}"] = torch.ones(draw(st.sampled_from([2, 32])))
    else:
        state[key] = draw(values)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def mutated(draw: Any, format: Format, pristine: Mapping[str, bytes]) -> tuple[str, bytes]:
    """One of the files, with something else in it."""
    name = draw(st.sampled_from([one for one in (format.config, format.tensors) if one]))
    content = pristine[name]
    if name == format.config:
        ways: list[Any] = [change_value, change_value, change_value, change_bytes, cut]
        ways += [change_fields] * 3 if format.name == "peft" else []
        way = draw(st.sampled_from(ways))
        if way in (change_bytes, cut):
            return name, way(draw, content)
        return name, as_bytes(way(draw, json.loads(content)))
    ways = [change_bytes, cut]
    ways += [change_state] * 2 if name.endswith(".pt") else [change_header, change_header_bytes] * 2
    return name, draw(st.sampled_from(ways))(draw, content)


def sign(folder: Path) -> None:
    """Let the two files belong together again: the digest would refuse every other tensor."""
    path = folder / "adapter.json"
    config = json.loads(path.read_text())
    config["digest"] = hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()
    path.write_text(json.dumps(config))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_loads_right_or_is_refused(format: Format, tmp_path: Path) -> None:
    folder = tmp_path / "mutated"
    folder.mkdir()
    format.write(folder)
    pristine = {path.name: path.read_bytes() for path in folder.iterdir()}
    one, batch, tried = model(), cases.by_name("bert").batch(), Counter[str]()
    state, base = cases.state(one), cases.logits(one, batch)

    def check() -> None:
        try:
            carried = format.use(one, folder)
        except trimtab.TrimtabError:
            assert not carries(one)
            tried["refused"] += 1
            return
        if carried:
            here = cases.logits(one, batch)
            trainable = trimtab.parameters(one, lr=1e-3)[0]["params"]
            trimtab.detach(one)
            assert format.meaning is not None
            assert trainable
            weights = dict(format.meaning(one, folder))
            if not all(weight.abs().max() < 1e4 for weight in weights.values()):
                tried["too large to compare"] += 1
                return
            with torch.no_grad():
                there = functional_call(one, weights, (), batch).logits
            torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)
        tried["loaded"] += 1

    @bounded
    @given(data=st.data())
    def every(data: st.DataObject) -> None:
        name, content = mutated(data.draw, format, pristine)
        (folder / name).write_bytes(content)
        if name == "adapter.safetensors" and format.name == "trimtab":
            sign(folder)
        try:
            check()
        finally:
            for changed in {name, "adapter.json"} & pristine.keys():
                (folder / changed).write_bytes(pristine[changed])

    every()
    cases.assert_same_state(one, state)
    assert torch.equal(cases.logits(one, batch), base)
    assert sum(tried.values()) >= EXAMPLES
    assert min(tried["refused"], tried["loaded"]) > EXAMPLES // 50, tried
