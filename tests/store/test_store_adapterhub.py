"""AdapterHub's folders, written here from the layout that its library documents."""

from __future__ import annotations

import functools
import json
import pickle
import re
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
        "decoder.block.{}.layer.0": "attention-output",
        "decoder.block.{}.layer.2": "mlp-output",
    },
    "bart": {
        "model.encoder.layers.{}.attention_adapters": "attention-output",
        "model.encoder.layers.{}.output_adapters": "mlp-output",
        "model.decoder.layers.{}.attention_adapters": "attention-output",
        "model.decoder.layers.{}.output_adapters": "mlp-output",
    },
    "llama": {
        "model.layers.{}.attention_adapters": "attention-output",
        "model.layers.{}.output_adapters": "mlp-output",
    },
    "albert": {
        "albert.encoder.albert_layer_groups.{}.albert_layers.0.attention.attention_adapters": (
            "attention-output"
        ),
        "albert.encoder.albert_layer_groups.{}.albert_layers.0.output_adapters": "mlp-output",
    },
}
D, K = 32, 2


FIELDS = {"attention-output": "mh_adapter", "mlp-output": "output_adapter"}


def write(
    folder: Path,
    config: dict[str, Any],
    layout: str = "bert",
    narrow: int = K,
    layers: int = 2,
    **options: Any,
) -> dict[str, Tensor]:
    """A folder of two layers; returns its tensors."""
    tensors = {}
    for place, role in LAYOUTS[layout].items():
        for layer in range(layers) if config[FIELDS[role]] else ():
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


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if one != "albert"])
@pytest.mark.parametrize("config", [PFEIFFER, HOULSBY], ids=["pfeiffer", "houlsby"])
def test_places_and_tensors(config: dict[str, Any], layout: str, tmp_path: Path) -> None:
    tensors = write(tmp_path, config, layout)
    saved = adapterhub.read(tmp_path)
    assert (saved.name, saved.model_type) == ("sst", layout)
    assert saved.fields["non_linearity"] == config["non_linearity"]
    assert saved.fields["original_ln_before"] == config["original_ln_before"]
    places = [
        (place.format(layer), role)
        for place, role in LAYOUTS[layout].items()
        for layer in range(2)
        if config[FIELDS[role]]
    ]
    assert len(saved.bottlenecks) == len(places)
    for place, role in places:
        (one,) = (
            each
            for each in saved.bottlenecks
            if each.role == role and place.startswith(f"{each.block}.")
        )
        prefix = f"{place}.adapters.sst."
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


def test_the_number_of_a_decoders_layer_is_not_told_by_its_name(tmp_path: Path) -> None:
    """The library counts a decoder's layers after the encoder's."""
    tensors = write(tmp_path, {**PFEIFFER, "leave_out": [1], "reduction_factor": {"0": 16}}, "bart")
    kept = {key: value for key, value in tensors.items() if ".encoder.layers.1." not in key}
    save_file(kept, tmp_path / "adapter.safetensors")
    assert [one.layer for one in adapterhub.read(tmp_path).bottlenecks] == [None, None, 0]


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


# Of each layout the sublayers by role: what gives h, what is given the residual r, and what gives
# the sum of both, normed or not.
SUBLAYERS: dict[str, dict[str, tuple[str, str, str]]] = {
    "bert": {
        "attention-output": ("attention.output.dense", "attention", "attention.output.LayerNorm"),
        "mlp-output": ("output.dense", "intermediate", "output.LayerNorm"),
    },
    "distilbert": {
        "attention-output": ("attention.out_lin", "attention", "sa_layer_norm"),
        "mlp-output": ("ffn.lin2", "ffn", "output_layer_norm"),
    },
    "bart": {
        "attention-output": ("self_attn.out_proj", "self_attn", "self_attn_layer_norm"),
        "mlp-output": ("fc2", "fc1", "final_layer_norm"),
    },
    "albert": {
        "attention-output": ("attention.dense", "attention", "attention.LayerNorm"),
        "mlp-output": ("ffn_output", "ffn", "full_layer_layer_norm"),
    },
    "gpt2": {"mlp-output": ("mlp", "ln_2", "")},
    "llama": {"mlp-output": ("mlp", "post_attention_layernorm", "")},
    "t5": {
        "attention-output": ("layer.0.SelfAttention.o", "layer.0", "layer.0"),
        "mlp-output": ("layer.{}.DenseReluDense", "layer.{}", "layer.{}"),
    },
}
WIDE = {**PFEIFFER, "mh_adapter": True, "scaling": 2.0, "non_linearity": "gelu"}
NORMED = [
    *[(layout, config) for layout in ("bert", "distilbert", "bart") for config in (PFEIFFER, WIDE)],
    *[("albert", PFEIFFER), ("albert", WIDE)],
    *[(layout, PFEIFFER) for layout in ("gpt2", "llama", "t5")],
    *[(layout, HOULSBY) for layout in ("bart", "distilbert", "t5")],
]


def library(
    model: torch.nn.Module, own: dict[str, Tensor], config: dict[str, Any], layout: str
) -> None:
    """The library's documented forward, in three steps a sublayer, upon a bare model.

    Before: x = h; with original_ln_before x = norm(h + r), or h + r without a norm. Within: h plus
    the bottleneck of x. After: norm(· + r), or · + r.
    """
    f = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "swish": torch.nn.functional.silu}
    for place in sorted({key.partition(".adapters.")[0] for key in own}):
        form = next(p for p in LAYOUTS[layout] if re.fullmatch(p.format(r"\d+"), place))
        role = LAYOUTS[layout][form]
        block = re.match(r".*?\d+(\.albert_layers\.0)?", place)
        assert block is not None
        gives, given, sums = (
            model.get_submodule(f"{block[0]}.{part}".rstrip(".").format(place[-1]))
            for part in SUBLAYERS[layout][role]
        )
        seen: dict[str, Tensor] = {}

        def keep_r(module: Any, args: Any, kwargs: Any, seen: Any = seen) -> None:
            seen["r"] = args[0] if args else kwargs["hidden_states"]

        def keep_h(module: Any, args: Any, y: Any, seen: Any = seen) -> None:
            seen["h"] = y

        def replace(module: Any, args: Any, y: Any, seen: Any = seen, place: str = place) -> Any:
            norm = module.forward if "norm" in type(module).__name__.lower() else lambda z: z
            h, r = seen["h"], seen["r"]
            x = norm(h + r) if config["original_ln_before"] else h
            up = law(own, place, x, f[config["non_linearity"]], config["scaling"])
            out = norm(h + up + r)
            return (out, *y[1:]) if isinstance(y, tuple) else out

        given.register_forward_pre_hook(keep_r, with_kwargs=True)
        gives.register_forward_hook(keep_h)
        sums.register_forward_hook(replace)


@functools.cache
def spread(layout: str) -> dict[str, Tensor]:
    """Weights in which no gain is 1 and no shift 0."""
    generator = torch.Generator().manual_seed(3)
    state = cases.by_name(layout).model().state_dict()
    return {
        key: t + 0.3 * torch.randn(t.shape, generator=generator) if t.ndim == 1 else t
        for key, t in state.items()
    }


def fresh(layout: str) -> torch.nn.Module:
    model = cases.by_name(layout).model()
    model.load_state_dict(spread(layout))
    return model.double()


@pytest.mark.parametrize(
    ("layout", "config"),
    NORMED,
    ids=[f"{layout}-{config['non_linearity']}" for layout, config in NORMED],
)
def test_it_computes_what_the_library_does(
    layout: str, config: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    own = write(tmp_path, config, layout, layers=1 if layout == "albert" else 2)
    model, expected = fresh(layout), fresh(layout)
    batch = cases.by_name(layout).batch()
    base = cases.logits(model, batch)
    library(expected, {key: tensor.double() for key, tensor in own.items()}, config, layout)
    adapter = trimtab.load(model, tmp_path)
    found, wanted = cases.logits(model, batch), cases.logits(expected, batch)
    cases.assert_differs(found, base)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    trimtab.save(model, tmp_path / "own", name=adapter.name)
    again = fresh(layout)
    trimtab.load(again, tmp_path / "own")
    assert torch.equal(cases.logits(again, batch), found)


def test_a_body_alone(tmp_path: Path) -> None:
    """The library names places from the model that was saved: a body, or one with a head."""
    torch.manual_seed(0)
    own = write(tmp_path, PFEIFFER)
    whole, body = fresh("bert"), fresh("bert").bert
    trimtab.load(whole, tmp_path)
    trimtab.load(body, tmp_path)
    batch = cases.by_name("bert").batch()
    given = {key: batch[key] for key in ("input_ids", "attention_mask")}
    wanted = whole.bert(**given).last_hidden_state
    assert torch.equal(body(**given).last_hidden_state, wanted)
    shorter = {key.removeprefix("bert."): tensor for key, tensor in own.items()}
    save_file(shorter, tmp_path / "adapter.safetensors")
    again = fresh("bert")
    trimtab.load(again, tmp_path)
    assert torch.equal(again.bert(**given).last_hidden_state, wanted)


UNNORMED = "in a model whose norms precede"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "added behind": ("bert", {"original_ln_after": False}, "original_ln_after=False"),
    "post_add": ("bert", {"residual_before_ln": "post_add"}, "residual_before_ln='post_add' has"),
    "normed residual": ("bert", {"residual_before_ln": False}, "residual_before_ln=False has no"),
    "activation": ("bert", {"non_linearity": "mish"}, "non_linearity is one of"),
    "parallel attention": ("bert", {"is_parallel": True, "mh_adapter": True}, "beside an attent"),
    "parallel and pre-norm": ("gpt2", {"is_parallel": True}, f"is_parallel has .*{UNNORMED}"),
    "attention and pre-norm": ("gpt2", {"mh_adapter": True}, f"original_ln_before .*{UNNORMED}"),
    "ALBERT's attention": (
        "albert",
        {"mh_adapter": True, "original_ln_before": False},
        "mh_adapter in ALBERT",
    ),
}


@pytest.mark.parametrize(("layout", "change", "match"), REFUSED.values(), ids=list(REFUSED))
def test_laws_that_have_no_equal(
    layout: str, change: dict[str, Any], match: str, tmp_path: Path
) -> None:
    write(tmp_path, {**PFEIFFER, **change}, layout, layers=1)
    model = cases.by_name(layout).model()
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.load(model, tmp_path)
    assert trimtab.core.adapter.carries(model) is False


def test_a_residual_that_is_before_the_norm_either_way(tmp_path: Path) -> None:
    """Without original_ln_before there is one residual only, whatever residual_before_ln says."""
    found = []
    for residual in (True, False):
        torch.manual_seed(0)
        write(tmp_path, {**SEQUENTIAL, "residual_before_ln": residual})
        model = fresh("bert")
        trimtab.load(model, tmp_path)
        found.append(cases.logits(model, cases.by_name("bert").batch()))
    assert torch.equal(*found)


def test_a_type_of_model_whose_norms_are_not_known(tmp_path: Path) -> None:
    write(tmp_path, PFEIFFER)
    model = cases.by_name("bert").model()
    model.config.model_type = "another"
    with pytest.raises(trimtab.InputError, match="not known here of the type 'another'"):
        trimtab.load(model, tmp_path)
    del model.config  # the folder's own word is taken then
    assert trimtab.load(model, tmp_path).name == "sst"


def test_a_model_without_the_places(tmp_path: Path) -> None:
    write(tmp_path, SEQUENTIAL)
    model = cases.by_name("gpt2").model()
    with pytest.raises(trimtab.AdapterMismatch, match="has 0 places of the role 'mlp-output'"):
        trimtab.load(model, tmp_path)
    assert trimtab.core.adapter.carries(model) is False
