"""BOFT, HRA and RoAd both ways, on several shapes; factors of the weight as LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cases
import more_models
import peft
import pytest
import torch
from both_ways import Writes, assert_same_fields, by_peft, configurations, loaded, there_and_back
from peft import BOFTConfig, HRAConfig, RoadConfig
from safetensors.torch import load_file

import trimtab

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:The symmetric initialization can NOT:UserWarning"),
]


class Blocks:
    """What HF PEFT's CUDA kernel computes: blocks on the diagonal. Without it there is one factor
    there, whatever the configuration says."""

    @staticmethod
    def forward(R: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([torch.block_diag(*factor) for factor in R])]


@pytest.fixture(autouse=True)
def several_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft.tuners.boft.layer, "get_fbd_cuda", lambda: Blocks)


def boft(**options: Any) -> Any:
    return BOFTConfig(boft_n_butterfly_factor=options.pop("factors", 1), **options)


CONFIGURATIONS: dict[str, tuple[str, Any]] = {
    "boft bert": ("bert", boft(task_type="SEQ_CLS", target_modules=["query", "output.dense"])),
    "boft three factors": ("llama", boft(target_modules=["q_proj", "down_proj"], factors=3)),
    "boft number": (
        "t5",
        boft(target_modules=["q", "wo"], factors=2, boft_block_size=0, boft_block_num=4),
    ),
    "boft vit": ("vit", boft(target_modules=["projection", "fc1"], factors=2)),
    "boft dropout, biases": (
        "bert",
        boft(target_modules=["query"], boft_dropout=0.5, bias="boft_only", boft_block_size=8),
    ),
    "hra bert": ("bert", HRAConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], r=4)),
    "hra odd": ("llama", HRAConfig(target_modules=["q_proj", "down_proj"], r=5)),
    "hra orthogonal": ("t5", HRAConfig(target_modules=["q", "wo"], r=6, apply_GS=True)),
    "hra vit": ("vit", HRAConfig(target_modules=["projection", "fc1"], r=4)),
    "hra biases": ("bert", HRAConfig(target_modules=["query"], r=2, bias="hra_only")),
    "road bert": ("bert", RoadConfig(task_type="SEQ_CLS", target_modules=["query"], group_size=8)),
    "road 2": (
        "llama",
        RoadConfig(target_modules=["q_proj", "down_proj"], variant="road_2", group_size=4),
    ),
    "road 4": ("t5", RoadConfig(target_modules=["q", "wo"], variant="road_4", group_size=16)),
    "road vit": ("vit", RoadConfig(target_modules=["fc1"], variant="road_4", group_size=2)),
}


@pytest.mark.parametrize(
    ("architecture", "config"), CONFIGURATIONS.values(), ids=list(CONFIGURATIONS)
)
def test_there_and_back(
    architecture: str, config: Any, peft_writes: Writes, tmp_path: Path
) -> None:
    there_and_back(more_models.by_name(architecture), config, peft_writes, tmp_path)
    assert_same_fields(*configurations(tmp_path))


UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "no factor": ("boft", {"boft_n_butterfly_factor": 0}, "factors must be at least 1"),
    "odd blocks": ("boft", {"boft_block_size": 5}, "features do not fall into blocks of 5"),
    "too many factors": ("boft", {"boft_n_butterfly_factor": 9}, "9 factors do not join"),
    "no reflection": ("hra", {"r": 0}, "rank must be at least 1"),
    "three angles": ("road", {"variant": "road_3"}, "angles must be 1, 2 or 4"),
    "no angle": ("road", {"variant": 1}, "one is no number"),
    "wide groups": ("road", {"group_size": 26}, "outputs do not fall into groups of 26"),
}


@pytest.mark.parametrize(("kind", "fields", "match"), UNFIT.values(), ids=list(UNFIT))
def test_fields_that_do_not_fit(
    kind: str, fields: dict[str, Any], match: str, peft_writes: Writes
) -> None:
    config = {
        "boft": boft(target_modules=["query"]),
        "hra": HRAConfig(target_modules=["query"], r=2),
        "road": RoadConfig(target_modules=["query"], group_size=2),
    }[kind]
    bert = more_models.by_name("bert")
    folder = peft_writes(bert, config).folder
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises((trimtab.InputError, trimtab.AdapterMismatch), match=match):
        trimtab.load(bert.model(), folder)


REFUSED: dict[str, tuple[str, Any, str, str]] = {
    "boft, stored the other way": ("gpt2", trimtab.BOFT(), "c_attn", "cannot be written"),
    "an embedding": ("bert", trimtab.HRA(), "embedding", "holds no hra there"),
    "compressed": ("bert", trimtab.Factor(residual="dropped"), "query", "has no such method"),
}


@pytest.mark.parametrize(("name", "method", "to", "match"), REFUSED.values(), ids=list(REFUSED))
def test_what_their_files_cannot_hold(
    name: str, method: Any, to: Any, match: str, tmp_path: Path
) -> None:
    model = more_models.by_name(name).model()
    trimtab.attach(model, method, to)
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.save(model, tmp_path / "new", format="peft")
    assert not (tmp_path / "new").exists()


FACTORS: dict[str, tuple[str, Any]] = {
    "bert": ("bert", trimtab.Factor(rank=3)),
    "stored the other way": ("gpt2", trimtab.Factor(rank=3)),
    "ranks that differ": ("llama", trimtab.Factor(energy=0.5)),
    "an embedding": ("llama", {"embedding": trimtab.Factor(rank=2)}),
    "a convolution": ("vit", {"projection": trimtab.Factor(rank=3)}),
    "beside biases": ("bert", {"query": [trimtab.Factor(rank=3), trimtab.BitFit()]}),
}


@pytest.mark.parametrize(("name", "method"), FACTORS.values(), ids=list(FACTORS))
def test_factors_of_the_weight_are_lora_there(name: str, method: Any, tmp_path: Path) -> None:
    """LoRA of twice the rank: the trained factors less those at the start."""
    architecture = more_models.by_name(name)
    model, batch = architecture.model(), architecture.batch()
    adapter = trimtab.attach(model, method)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    expected = cases.logits(model, batch)
    cases.assert_differs(expected, cases.logits(architecture.model(), batch))
    folder = trimtab.save(model, tmp_path / "ours", format="peft")
    held = load_file(folder / "adapter_model.safetensors")
    ranks = {tensor.shape[0] for key, tensor in held.items() if "lora_A" in key}
    assert all(rank % 2 == 0 for rank in ranks)
    theirs = cases.logits(by_peft(folder, architecture), batch)
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-4)
    ours = cases.logits(loaded(folder, architecture), batch)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
