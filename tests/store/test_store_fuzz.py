"""Whatever stands in the files: an adapter loads and works, or is refused in Trimtab's own "
"words."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import trimtab
from trimtab.core.adapter import carries
from trimtab.store.describe import describe

BERT = cases.by_name("bert")
FILES = {
    "trimtab": ("adapter.json", "adapter.safetensors"),
    "peft": ("adapter_config.json", "adapter_model.safetensors"),
}
bounded = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NAMES = ["", "lora", "ia3", "full", "whole", "LORA", "IA3", "all-linear", "query", "classifier"]
STRANGE = ["../x", "(", ".*", "bert.pooler.dense", "bert.embeddings.LayerNorm", "none", "\ud800"]
words = st.sampled_from([*NAMES, *STRANGE])
numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, 10**40, 10**400, 1e308, 1e999, -1e999, 1e-300, 0.5, -0.0]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=4,
)


@pytest.fixture(params=FILES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str]:
    """A small adapter's folder, and the names of its two files."""
    model = BERT.model()
    cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=2), "query", train=["classifier"]))
    trimtab.save(model, tmp_path / "saved", format=request.param)
    return (tmp_path / "saved", *FILES[request.param])


def loads_or_is_refused(folder: Path) -> None:
    model, batch = BERT.model(), BERT.batch()
    before = cases.logits(model, batch)
    try:
        trimtab.load(model, folder, name="fuzzed", trainable=True)
    except trimtab.TrimtabError:
        assert not carries(model)
        assert cases.logits(model, batch).equal(before)
        return
    assert cases.logits(model, batch).isfinite().all()
    cases.loss(model, batch).backward()
    assert trimtab.parameters(model)
    trimtab.detach(model)
    assert cases.logits(model, batch).equal(before)


def describes_or_is_refused(folder: Path) -> None:
    with contextlib.suppress(trimtab.TrimtabError):
        assert describe(folder).sites


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within JSON data, but the base's long list of parameters."""
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


def in_a_copy(folder: Path, name: str, content: bytes, check: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as fresh:
        copied = Path(shutil.copytree(folder, Path(fresh) / "copy"))
        (copied / name).write_bytes(content)
        check(copied)


@bounded
@given(data=st.data())
def test_any_value_anywhere_in_the_configuration(
    saved: tuple[Path, str, str], data: st.DataObject
) -> None:
    folder, name, _ = saved
    config = json.loads((folder / name).read_text())
    path = data.draw(st.sampled_from(places(config)))
    value = data.draw(values)
    mutated = json.dumps(put(config, path, value)).encode()
    in_a_copy(folder, name, mutated, loads_or_is_refused)
    in_a_copy(folder, name, mutated, describes_or_is_refused)


FIELDS = ["target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "r"]
FIELDS += ["rank_pattern", "alpha_pattern", "layers_pattern", "lora_alpha", "use_rslora"]
FIELDS += ["lora_dropout", "peft_type", "bias", "feedforward_modules", "init_lora_weights"]


@bounded
@pytest.mark.parametrize("saved", ["peft"], indirect=True)
@given(changes=st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=3))
def test_any_value_in_fields_of_hf_peft(
    saved: tuple[Path, str, str], changes: dict[str, Any]
) -> None:
    folder, name, _ = saved
    config = json.loads((folder / name).read_text())
    mutated = json.dumps({**config, **changes}).encode()
    in_a_copy(folder, name, mutated, loads_or_is_refused)


@bounded
@given(data=st.data())
def test_any_bytes_anywhere_in_the_header_of_the_tensors(
    saved: tuple[Path, str, str], data: st.DataObject
) -> None:
    folder, _, name = saved
    content = bytearray((folder / name).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    in_a_copy(folder, name, bytes(content), loads_or_is_refused)
    in_a_copy(folder, name, bytes(content), describes_or_is_refused)


DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "C64", "F4"]


@bounded
@given(data=st.data())
def test_any_dtype_shape_and_name_in_the_header(
    saved: tuple[Path, str, str], data: st.DataObject
) -> None:
    folder, _, name = saved
    content = (folder / name).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    tensor = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "name"]))
    if field == "name":
        header[data.draw(words)] = header.pop(tensor)
    elif field == "dtype":
        header[tensor]["dtype"] = data.draw(st.sampled_from(DTYPES))
    else:
        header[tensor][field] = data.draw(st.lists(st.integers(0, 128), max_size=3))
    try:
        written = json.dumps(header, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        assume(False)
    mutated = len(written).to_bytes(8, "little") + written + content[end:]
    in_a_copy(folder, name, mutated, loads_or_is_refused)
    in_a_copy(folder, name, mutated, describes_or_is_refused)


@bounded
@given(keep=st.integers(0, 4000), content=st.binary(max_size=40))
def test_truncated_and_foreign_files(
    saved: tuple[Path, str, str], keep: int, content: bytes
) -> None:
    folder, config, tensors = saved
    for name in (config, tensors):
        cut = (folder / name).read_bytes()[:keep]
        in_a_copy(folder, name, cut + content, loads_or_is_refused)
        in_a_copy(folder, name, content, loads_or_is_refused)
