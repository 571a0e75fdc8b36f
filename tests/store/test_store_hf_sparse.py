"""HF PEFT's files of sparse, circulant, shared and spectral updates, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cases
import more_models
import peft
import pytest
import torch
from both_ways import (
    PLACES,
    Writes,
    assert_same_fields,
    by_peft,
    configurations,
    loaded,
    there_and_back,
)
from peft import C3AConfig, FourierFTConfig, MissConfig, ShiraConfig
from safetensors.torch import load_file, save_file

import trimtab
from trimtab.core.adapter import record
from trimtab.store.describe import describe

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly:UserWarning"),
    pytest.mark.filterwarnings("ignore:Argument self.mask_type=.* is not recognized:UserWarning"),
]
PATTERNS = {"n_frequency_pattern", "block_size_pattern"}
QUERY = "encoder.layer.1.attention.self.query"
CONFIGURATIONS: dict[str, tuple[str, Any]] = {
    "fourierft bert": (
        "bert",
        FourierFTConfig(
            task_type="SEQ_CLS",
            target_modules=["query", "output.dense"],
            n_frequency=40,
            n_frequency_pattern={QUERY: 30},
        ),
    ),
    "fourierft gpt2": (
        "gpt2",
        FourierFTConfig(
            target_modules=["c_attn", "mlp.c_proj"],
            n_frequency=9,
            scaling=20.0,
            fan_in_fan_out=True,
        ),
    ),
    "fourierft llama": (
        "llama",
        FourierFTConfig(target_modules="all-linear", n_frequency=20, random_loc_seed=3),
    ),
    "fourierft t5": (
        "t5",
        FourierFTConfig(target_modules=["q", "wi"], n_frequency=50, init_weights=True),
    ),
    "fourierft biases": (
        "bert",
        FourierFTConfig(target_modules=["query"], n_frequency=40, bias="fourier_only"),
    ),
    "c3a bert": (
        "bert",
        C3AConfig(
            task_type="SEQ_CLS",
            target_modules=["query", "output.dense"],
            block_size=8,
            block_size_pattern={QUERY: 16},
        ),
    ),
    "c3a llama": ("llama", C3AConfig(target_modules="all-linear", block_size=16)),
    "c3a t5": ("t5", C3AConfig(target_modules=["q", "wo"], block_size=4, init_weights="gaussian")),
    "c3a vit": ("vit", C3AConfig(target_modules=["q_proj", "fc1"], block_size=32)),
    "c3a odd": ("bert", C3AConfig(target_modules=["query"], block_size=1, init_weights=True)),
    "c3a biases": ("bert", C3AConfig(target_modules=["query"], block_size=8, bias="c3a_only")),
    "miss bert": (
        "bert",
        MissConfig(task_type="SEQ_CLS", target_modules=["query", "output.dense"], r=6),
    ),
    "miss llama": ("llama", MissConfig(target_modules="all-linear", r=8, miss_dropout=0.1)),
    "miss vit": ("vit", MissConfig(target_modules=["q_proj", "fc2"], r=32, init_weights=False)),
    "miss bat": ("llama", MissConfig(target_modules="all-linear", r=8, init_weights="bat")),
    "miss mini": (
        "t5",
        MissConfig(target_modules=["q", "wo"], r=5, mini_r=8, init_weights="mini"),
    ),
    "miss biases": ("bert", MissConfig(target_modules=["query"], r=4, bias="MiSS_only")),
    "shira bert": (
        "bert",
        ShiraConfig(task_type="SEQ_CLS", target_modules=["query", "output.dense"], r=3),
    ),
    "shira llama": ("llama", ShiraConfig(target_modules="all-linear", r=2, random_seed=7)),
    "shira t5": ("t5", ShiraConfig(target_modules=["q", "wi"], r=16)),
    "shira vit": ("vit", ShiraConfig(target_modules=["q_proj"], r=1, init_weights=False)),
}


@pytest.mark.parametrize(
    ("architecture", "config"), CONFIGURATIONS.values(), ids=list(CONFIGURATIONS)
)
def test_there_and_back(
    architecture: str, config: Any, peft_writes: Writes, tmp_path: Path
) -> None:
    there_and_back(more_models.by_name(architecture), config, peft_writes, tmp_path)
    theirs, ours = configurations(tmp_path)
    free = {"init_weights"} if theirs["peft_type"] == "C3A" else set()  # False is xavier_uniform
    assert_same_fields(theirs, ours, PLACES | PATTERNS | free)
    for field in PATTERNS & theirs.keys():
        assert set(ours[field].values()) == set(theirs[field].values())


NEW: dict[str, tuple[str, Any]] = {
    "fourierft": ("llama", FourierFTConfig(target_modules="all-linear", n_frequency=30)),
    "fourierft by default": ("gpt2", FourierFTConfig(n_frequency=30, fan_in_fan_out=True)),
    "c3a": ("llama", C3AConfig(target_modules="all-linear", block_size=8)),
    "c3a with biases": ("bert", C3AConfig(block_size=8, bias="c3a_only")),
    "miss": ("bert", MissConfig(r=8)),
    "miss bat": ("bert", MissConfig(r=8, init_weights="bat")),
    "shira": ("llama", ShiraConfig(r=4)),
}


@pytest.mark.parametrize(("name", "config"), NEW.values(), ids=list(NEW))
def test_a_new_adapter_is_theirs(name: str, config: Any) -> None:
    """A configuration of theirs attaches what it would there: the same places, the same shapes."""
    architecture = cases.by_name(name)
    theirs = peft.get_peft_model(architecture.model(), config)
    adapter = trimtab.attach(architecture.model(), config)
    there = sorted(tuple(p.shape) for p in theirs.parameters() if p.requires_grad)
    assert sorted(tuple(p.shape) for p in adapter.parameters()) == there
    drawn = {
        path.removeprefix("base_model.model."): getattr(module, kind)["default"]
        for path, module in theirs.named_modules()
        for kind in ("indices", "shira_indices")
        if hasattr(module, kind)
    }
    for site, delta in adapter.deltas():
        if "indices" in delta.tensors():
            assert torch.equal(delta.tensors()["indices"], drawn[site].int())


def test_sites_that_take_other_sizes(tmp_path: Path) -> None:
    """What a method takes from each site is a pattern there."""
    for method in (trimtab.C3A(), trimtab.FourierFT(n_frequency=600)):
        llama = cases.by_name("llama")
        model = llama.model()
        cases.perturb(trimtab.attach(model, method))
        folder = trimtab.save(model, tmp_path / method.name, format="peft")
        config = json.loads((folder / "adapter_config.json").read_text())
        (pattern,) = (config[field] for field in PATTERNS & config.keys())
        assert pattern
        assert all(name in dict(model.named_modules()) for name in pattern)
        there = cases.logits(by_peft(folder, llama), llama.batch())
        here = cases.logits(model, llama.batch())
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


def test_places_of_their_own(peft_writes: Writes) -> None:
    """A mask that a user gave there is in the file, whatever it is called."""
    config = ShiraConfig(target_modules=["query"], r=2, mask_type="mine")

    def mask(layer: Any, r: int, **_: Any) -> torch.Tensor:
        chosen = torch.zeros(layer.weight.numel())
        chosen[: r * sum(layer.weight.shape)] = 1
        return chosen.view_as(layer.weight)

    config.mask_fn = mask
    bert = cases.by_name("bert")
    theirs = peft_writes(bert, config)
    model = loaded(theirs.folder, bert)
    torch.testing.assert_close(cases.logits(model, bert.batch()), theirs.logits)
    (_, delta), *_ = record(model).adapter(None).deltas()
    assert delta.method == trimtab.SHiRA(rank=2, mask="data")
    assert int(delta.tensors()["indices"][0].max()) == 3  # 128 of 32 in a row


def test_largest_weights(tmp_path: Path) -> None:
    bert = cases.by_name("bert")
    model = bert.model()
    cases.perturb(trimtab.attach(model, trimtab.SHiRA(rank=2, mask="magnitude")))
    folder = trimtab.save(model, tmp_path, format="peft")
    there = cases.logits(by_peft(folder, bert), bert.batch())
    torch.testing.assert_close(there, cases.logits(model, bert.batch()), rtol=1e-5, atol=1e-5)
    assert trimtab.load(bert.model(), folder).entries[0][1] == trimtab.SHiRA(
        rank=2, mask="magnitude"
    )


REFUSED: dict[str, tuple[str, Any, str]] = {
    "nonzero": ("bert", trimtab.SHiRA(mask="nonzero"), 'mask="nonzero" has as many'),
    "stored the other way": ("gpt2", trimtab.C3A(), "holds no c3a there"),
    "fish": ("bert", trimtab.Fish(), r"\(fish\) cannot be written"),
}


@pytest.mark.parametrize(("name", "method", "match"), REFUSED.values(), ids=list(REFUSED))
def test_what_their_files_cannot_hold(name: str, method: Any, match: str, tmp_path: Path) -> None:
    model = cases.by_name(name).model()
    trimtab.attach(model, method)
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.save(model, tmp_path / "new", format="peft")
    assert not (tmp_path / "new").exists()


UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "pattern": ("c3a", {"block_size_pattern": 8}, "block_size_pattern must be an object"),
    "another pattern": ("shira", {"rank_pattern": {"query": 3}}, "rank_pattern=.* no equal"),
    "blocks": ("c3a", {"block_size": 5}, "blocks of 5 do not divide 32 x 32; those of 32 do"),
    "form": ("miss", {"init_weights": "both"}, "form must be one of balance, mini, bat"),
    "shard": ("miss", {"r": 33}, "a shard of 33 columns is wider than its 32"),
    "start": ("c3a", {"init_weights": "ones"}, "start must be one of xavier_uniform"),
    "rank": ("shira", {"r": 17}, "rank 17 takes 1088 values of 1024"),
    "seed": ("fourierft", {"random_loc_seed": "five"}, "seed must be int"),
}


@pytest.mark.parametrize(("kind", "fields", "match"), UNFIT.values(), ids=list(UNFIT))
def test_fields_that_do_not_fit(
    kind: str, fields: dict[str, Any], match: str, peft_writes: Writes
) -> None:
    config = {
        "c3a": C3AConfig(target_modules=["query"], block_size=8),
        "miss": MissConfig(target_modules=["query"], r=4),
        "shira": ShiraConfig(target_modules=["query"], r=4),
        "fourierft": FourierFTConfig(target_modules=["query"], n_frequency=9),
    }[kind]
    bert = cases.by_name("bert")
    folder = peft_writes(bert, config).folder
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises((trimtab.InputError, trimtab.AdapterMismatch), match=match):
        trimtab.load(bert.model(), folder)


def test_places_beyond_the_matrix(peft_writes: Writes) -> None:
    bert = cases.by_name("bert")
    folder = peft_writes(bert, ShiraConfig(target_modules=["query"], r=2)).folder
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("shira_indices"))
    tensors[key][1, 0] = 32
    save_file(tensors, path)
    with pytest.raises(trimtab.AdapterMismatch, match=r"indices.*beyond"):
        trimtab.load(bert.model(), folder)


@pytest.mark.parametrize("method", [trimtab.SHiRA(rank=2), trimtab.MiSS()], ids=["shira", "miss"])
def test_what_a_folder_holds_without_a_model(method: Any, tmp_path: Path) -> None:
    """The size of the site, which these laws ask for, is in no file of tensors."""
    model = cases.by_name("bert").model()
    adapter = trimtab.attach(model, method, "query")
    found = describe(trimtab.save(model, tmp_path)).sites
    shapes = [{k: tuple(t.shape) for k, t in d.tensors().items()} for _, d in adapter.deltas()]
    assert [site.shapes for site in found] == shapes
