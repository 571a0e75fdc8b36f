"""AdapterHub's folders, written here from the layout that its library documents."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import trimtab
from trimtab.store import adapterhub

PFEIFFER: dict[str, Any] = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "factorized_phm_W": True,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "bert",
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "is_parallel": False,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "non_linearity": "relu",
    "original_ln_after": True,
    "original_ln_before": True,
    "output_adapter": True,
    "phm_dim": 4,
    "phm_layer": False,
    "reduction_factor": 16,
    "residual_before_ln": True,
    "scaling": 1.0,
    "use_gating": False,
}
HOULSBY = {**PFEIFFER, "mh_adapter": True, "original_ln_before": False, "non_linearity": "swish"}
PARALLEL = {**PFEIFFER, "is_parallel": True, "scaling": 4.0, "reduction_factor": 2}
LAYOUTS: dict[str, dict[str, str]] = {
    "bert": {
        "bert.encoder.layer.{}.attention.output": "attention-output",
        "bert.encoder.layer.{}.output": "mlp-output",
    },
    "distilbert": {
        "distilbert.transformer.layer.{}.attention_adapters": "attention-output",
        "distilbert.transformer.layer.{}.output_adapters": "mlp-output",
    },
    "gpt2": {
        "transformer.h.{}.attention_adapters": "attention-output",
        "transformer.h.{}.output_adapters": "mlp-output",
    },
    "t5": {
        "encoder.block.{}.layer.0": "attention-output",
        "encoder.block.{}.layer.1": "mlp-output",
    },
}
D, K = 32, 2


def write(
    folder: Path, config: dict[str, Any], layout: str = "bert", narrow: int = K, **options: Any
) -> dict[str, Tensor]:
    """A folder of two layers; returns its tensors."""
    roles = {"attention-output": "mh_adapter", "mlp-output": "output_adapter"}
    tensors = {}
    for place, role in LAYOUTS[layout].items():
        for layer in range(2) if config[roles[role]] else ():
            prefix = f"{place.format(layer)}.adapters.sst."
            tensors[f"{prefix}adapter_down.0.weight"] = torch.randn(narrow, D)
            tensors[f"{prefix}adapter_down.0.bias"] = torch.randn(narrow)
            tensors[f"{prefix}adapter_up.weight"] = torch.randn(D, narrow)
            tensors[f"{prefix}adapter_up.bias"] = torch.randn(D)
    folder.mkdir(exist_ok=True)
    whole = {"config": config, "hidden_size": D, "model_type": layout, "name": "sst", **options}
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    save_file(tensors, folder / "adapter.safetensors")
    return tensors


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", [PFEIFFER, HOULSBY], ids=["pfeiffer", "houlsby"])
def test_places_and_tensors(config: dict[str, Any], layout: str, tmp_path: Path) -> None:
    tensors = write(tmp_path, config, layout)
    saved = adapterhub.read(tmp_path)
    assert (saved.name, saved.model_type) == ("sst", layout)
    assert saved.fields["non_linearity"] == config["non_linearity"]
    assert saved.fields["original_ln_before"] == config["original_ln_before"]
    assert len(saved.bottlenecks) == (4 if config["mh_adapter"] else 2)
    for one in saved.bottlenecks:
        place = next(p for p, role in LAYOUTS[layout].items() if role == one.role)
        assert place.format(one.layer).startswith(one.block)
        prefix = f"{place.format(one.layer)}.adapters.sst."
        assert torch.equal(one.tensors["D"], tensors[f"{prefix}adapter_down.0.weight"])
        assert torch.equal(one.tensors["D_bias"], tensors[f"{prefix}adapter_down.0.bias"])
        assert torch.equal(one.tensors["U"], tensors[f"{prefix}adapter_up.weight"])
        assert torch.equal(one.tensors["U_bias"], tensors[f"{prefix}adapter_up.bias"])


def test_parallel_and_its_scaling(tmp_path: Path) -> None:
    write(tmp_path, PARALLEL, narrow=16)
    fields = adapterhub.read(tmp_path).fields
    assert (fields["is_parallel"], fields["scaling"]) == (True, 4.0)


def test_the_old_file_of_torch(tmp_path: Path) -> None:
    tensors = write(tmp_path, HOULSBY)
    (tmp_path / "adapter.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_adapter.bin")
    assert len(adapterhub.read(tmp_path).bottlenecks) == 4


def test_an_older_configuration_without_newer_fields(tmp_path: Path) -> None:
    newer = ("scaling", "is_parallel", "dropout", "use_gating", "phm_layer", "init_weights")
    write(tmp_path, {key: value for key, value in PFEIFFER.items() if key not in newer})
    fields = adapterhub.read(tmp_path).fields
    assert (fields["scaling"], fields["is_parallel"], fields["dropout"]) == (1.0, False, 0.0)


def test_a_factor_for_each_layer(tmp_path: Path) -> None:
    write(tmp_path, {**PFEIFFER, "reduction_factor": {"1": 16, "default": 16}})
    assert len(adapterhub.read(tmp_path).bottlenecks) == 2
    write(tmp_path, {**PFEIFFER, "reduction_factor": {"1": 16}})
    with pytest.raises(trimtab.InputError, match="says nothing of layer 0"):
        adapterhub.read(tmp_path)


ON: dict[str, Any] = {
    "phm_layer": True,
    "inv_adapter": "nice",
    "use_gating": True,
    "ln_before": True,
    "ln_after": True,
    "cross_adapter": True,
    "stochastic_depth": 0.1,
    "something_new": [1],
}


@pytest.mark.parametrize(("field", "value"), ON.items(), ids=list(ON))
def test_a_field_that_is_on_and_not_honoured(field: str, value: Any, tmp_path: Path) -> None:
    write(tmp_path, {**PFEIFFER, field: value})
    with pytest.raises(trimtab.InputError, match=f"{field}=.* has no equal here"):
        adapterhub.read(tmp_path)


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "lora": ({"architecture": "lora"}, "only bottleneck adapters are read"),
    "learned scale": ({"scaling": "learned"}, "scaling must be int or float"),
    "endless scale": ({"scaling": 1e308}, "must be finite"),
    "dropout": ({"dropout": 1.0}, r"within \[0, 1\)"),
    "words": ({"mh_adapter": "yes"}, "mh_adapter must be bool"),
    "residual": ({"residual_before_ln": "pre"}, "residual_before_ln is true, false or"),
    "left out": ({"leave_out": ["a"]}, "leave_out must be numbers"),
    "factor": ({"reduction_factor": 0}, "reduction_factor must be above 0"),
    "another factor": ({"reduction_factor": 8}, r"D has shape \(2, 32\), and must have \(4, 32\)"),
    "tensors left out": ({"leave_out": [1]}, "leaves layer 1 out, and has tensors"),
    "places": ({"mh_adapter": True}, "by its configuration"),
}


@pytest.mark.parametrize(("fields", "match"), MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_configuration(fields: dict[str, Any], match: str, tmp_path: Path) -> None:
    write(tmp_path, PFEIFFER)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "config": {**config["config"], **fields}}))
    with pytest.raises(trimtab.InputError, match=match):
        adapterhub.read(tmp_path)


def test_fields_that_are_missing(tmp_path: Path) -> None:
    write(tmp_path, {key: value for key, value in PFEIFFER.items() if key != "non_linearity"})
    with pytest.raises(trimtab.InputError, match="non_linearity is missing"):
        adapterhub.read(tmp_path)
    write(tmp_path, PFEIFFER, name=3)
    with pytest.raises(trimtab.InputError, match="no configuration of AdapterHub"):
        adapterhub.read(tmp_path)


FIRST = "bert.encoder.layer.0.output.adapters.sst."
BROKEN: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(f"{FIRST}adapter_up.bias"), "misses its tensor U_bias"),
    "extra": (lambda t: t.update({f"{FIRST}gate.weight": torch.ones(1)}), "no part of a bottle"),
    "foreign": (lambda t: t.update({"classifier.weight": torch.ones(1)}), "no part of a bottle"),
    "another adapter": (
        lambda t: t.update({FIRST.replace("sst", "x") + "adapter_up.bias": torch.ones(1)}),
        "no part of a bottleneck of the adapter 'sst'",
    ),
    "nowhere": (
        lambda t: t.update({"bert.pooler.adapters.sst.adapter_up.bias": torch.ones(1)}),
        "no place known here",
    ),
    "misshapen": (lambda t: t.update({f"{FIRST}adapter_up.bias": torch.ones(3)}), "U_bias has"),
    "vector": (lambda t: t.update({f"{FIRST}adapter_down.0.weight": torch.ones(3)}), "a matrix"),
    "whole numbers": (
        lambda t: t.update({f"{FIRST}adapter_up.bias": torch.ones(32, dtype=torch.long)}),
        "finite floating-point",
    ),
    "not finite": (
        lambda t: t.update({f"{FIRST}adapter_up.bias": torch.full((32,), float("inf"))}),
        "finite floating-point",
    ),
    "empty": (lambda t: t.clear(), "has no tensors"),
}


@pytest.mark.parametrize(("change", "match"), BROKEN.values(), ids=list(BROKEN))
def test_broken_tensors(
    change: Callable[[dict[str, Tensor]], object], match: str, tmp_path: Path
) -> None:
    write(tmp_path, PFEIFFER)
    tensors = load_file(tmp_path / "adapter.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "adapter.safetensors")
    with pytest.raises(trimtab.InputError, match=match):
        adapterhub.read(tmp_path)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    write(tmp_path, PFEIFFER)
    (tmp_path / "adapter.safetensors").unlink()
    (tmp_path / "pytorch_adapter.bin").write_bytes(pickle.dumps(Trap(tmp_path / "trace")))
    with pytest.raises(trimtab.InputError, match="holds more than tensors"):
        adapterhub.read(tmp_path)
    assert not (tmp_path / "trace").exists()


def test_no_tensors_file(tmp_path: Path) -> None:
    write(tmp_path, PFEIFFER)
    (tmp_path / "adapter.safetensors").unlink()
    with pytest.raises(trimtab.InputError, match="is missing"):
        adapterhub.read(tmp_path)


def stored(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """A folder for the test's BERT; its tensors by layer's part and leaf."""
    narrow = 16 if config["is_parallel"] else K
    return write(folder, config, narrow=narrow)


def law(own: dict[str, Tensor], place: str, z: Tensor, f: Any, s: float) -> Tensor:
    """s (U f(D z + d) + u), of the library's documentation."""
    at = f"{place}.adapters.sst."
    down = z @ own[f"{at}adapter_down.0.weight"].T + own[f"{at}adapter_down.0.bias"]
    return s * (f(down) @ own[f"{at}adapter_up.weight"].T + own[f"{at}adapter_up.bias"])


SEQUENTIAL = {**PFEIFFER, "original_ln_before": False}
BESIDE = {**PARALLEL, "original_ln_before": False}
LAWS = {
    "houlsby": (HOULSBY, torch.nn.functional.silu),
    "pfeiffer": (SEQUENTIAL, torch.relu),
    "parallel": (BESIDE, torch.relu),
}


@pytest.mark.parametrize(("config", "f"), LAWS.values(), ids=list(LAWS))
def test_it_computes_the_documented_law(config: dict[str, Any], f: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = stored(tmp_path, config)
    bert = cases.by_name("bert")
    expected, model = bert.model(), bert.model()
    for i, layer in enumerate(expected.bert.encoder.layer):
        place, taken = f"bert.encoder.layer.{i}", {}

        def after(module: Any, args: Any, y: Tensor, at: str = "") -> Tensor:
            return y + law(own, at, y, f, config["scaling"])

        def keep(module: Any, args: Any, y: Tensor, taken: Any = taken) -> None:
            taken["x"] = args[0]

        def beside(module: Any, args: Any, y: Tensor, at: str = "", taken: Any = taken) -> Tensor:
            return y + law(own, at, taken["x"], f, config["scaling"])

        if config["is_parallel"]:
            layer.intermediate.dense.register_forward_hook(keep)
            hook = functools.partial(beside, at=f"{place}.output")
            layer.output.dense.register_forward_hook(hook)
            continue
        hook = functools.partial(after, at=f"{place}.output")
        layer.output.dense.register_forward_hook(hook)
        if config["mh_adapter"]:
            hook = functools.partial(after, at=f"{place}.attention.output")
            layer.attention.output.dense.register_forward_hook(hook)
    adapter = trimtab.load(model, tmp_path)
    assert adapter.name == "sst"
    found, wanted = (cases.logits(one, bert.batch()) for one in (model, expected))
    cases.assert_differs(found, cases.logits(bert.model(), bert.batch()))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"original_ln_before": True}, "original_ln_before=True: a bottleneck that reads behind"),
        ({"original_ln_after": False}, "original_ln_after=False"),
        ({"residual_before_ln": "post_add"}, "residual_before_ln='post_add' has no equal"),
        ({"non_linearity": "mish"}, "non_linearity is one of"),
        ({"is_parallel": True, "mh_adapter": True}, "is_parallel beside an attention"),
    ],
    ids=["before", "after", "post_add", "activation", "parallel attention"],
)
def test_laws_that_have_no_equal(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    write(tmp_path, {**SEQUENTIAL, **change})
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.load(cases.by_name("bert").model(), tmp_path)


def test_a_model_without_the_places(tmp_path: Path) -> None:
    write(tmp_path, SEQUENTIAL)
    model = cases.by_name("gpt2").model()
    with pytest.raises(trimtab.AdapterMismatch, match="has 0 places of the role 'mlp-output'"):
        trimtab.load(model, tmp_path)
    assert trimtab.core.adapter.carries(model) is False
