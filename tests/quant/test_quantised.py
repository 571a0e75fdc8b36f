"""Quantised bases: what libraries do, models that transformers quantised, the verbs."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core import quantised
from trimtab.quant import FORMATS
from trimtab.testing.laws.quantised import bits

pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")

BERT = cases.by_name("bert")


def wide(to: str | None = "nf4") -> Any:
    """Two maps whose codes bitsandbytes packs anew at inference."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    return model if to is None else trimtab.quantise(model, to, skip=())


class Unknown(nn.Module):
    """A linear map of a library that nobody knows: codes and scales, and no `weight`."""

    in_features, out_features = 6, 4

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.randint(-8, 8, (4, 6), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(4, 1))
        self.register_buffer("bias", torch.randn(4))

    def matrix(self) -> Tensor:
        return self.qweight * self.scales

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.matrix(), self.bias)


@pytest.mark.parametrize("method", [trimtab.LoRA(rank=2), trimtab.DoRA(rank=2), trimtab.OFT()])
def test_a_library_that_nobody_knows_is_probed(method: trimtab.core.method.Method) -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), Unknown()), torch.randn(3, 6)
    assert torch.allclose(quantised.probe(model[1]), model[1].matrix(), atol=1e-6)
    base = model(x)
    adapter = trimtab.attach(model, method, to="1")
    assert torch.allclose(model(x), base, atol=1e-5)
    cases.perturb(adapter)
    outputs = model(x)
    assert not torch.allclose(outputs, base, atol=1e-3)
    with pytest.raises(trimtab.InputError, match=r"holds codes.*dequantise=True"):
        trimtab.merge(model)
    assert torch.allclose(trimtab.merge(model, dequantise=True)(x), outputs, atol=1e-5)
    trimtab.unmerge(model)
    assert torch.equal(model(x), outputs)
    trimtab.detach(model)
    assert torch.equal(model(x), base)


@pytest.mark.parametrize("to", sorted(FORMATS))
def test_the_librarys_reading_is_the_probed_one(to: str) -> None:
    module = wide(to)[0].train()
    assert torch.allclose(quantised.weight(module), quantised.probe(module), atol=1e-5)


def test_inference_before_and_after_attaching_leaves_nf4_trainable() -> None:
    model, x = wide(), torch.randn(3, 64)
    model[0].support_avx512bf16_for_cpu = model[1].support_avx512bf16_for_cpu = True
    base = model(x.clone().requires_grad_()).detach()  # with a gradient asked for: not packed
    codes = copy.deepcopy(model.state_dict())
    trimtab.attach(model, trimtab.LoRA(rank=2), to="0")
    model.eval()
    with torch.no_grad():
        model(x)
    model.train()
    model(x).sum().backward()
    assert model[0].deltas["default"]["lora"].B.grad.abs().max() > 0
    trimtab.detach(model)
    assert all(torch.equal(tensor, codes[name]) for name, tensor in model.state_dict().items())
    assert model[0].support_avx512bf16_for_cpu
    assert torch.allclose(model(x.requires_grad_()), base)


def test_a_map_that_gives_no_gradient_lets_it_through() -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model, x = wide(None), torch.randn(3, 64)
    quantize_(model, Int8DynamicActivationInt8WeightConfig(), lambda one, name: name == "1")
    assert not model.requires_grad_(False)[1](x.clone().requires_grad_()).requires_grad
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2), to="0")
    cases.perturb(adapter)
    model(x).sum().backward()
    W = quantised.weight(trimtab.core.walk.plain(model[1]))
    down = model[0].deltas["default"]["lora"]
    expected = 8 * W.sum(0)[:, None] * (x @ down.A.T).sum(0)
    assert torch.allclose(down.B.grad, expected, atol=1e-3)


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_a_bias_is_not_rounded_by_an_input_in_bf16(to: str) -> None:
    model = wide(to)
    before = model[0].bias.detach().clone()
    trimtab.attach(model, trimtab.LoRA(rank=2), to="0")
    model(torch.randn(2, 64).bfloat16())
    assert torch.equal(model[0].bias, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qlora_is_served_on_a_base_in_another_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """As `lora`, with the very factors, and never in silence; on NF4 as it was trained."""
    model = trimtab.quantise(BERT.model(), "nf4")
    method = trimtab.QLoRA(rank=2, alpha=3.0, rslora=True)
    adapter = trimtab.attach(model, method, ["query", "value"], train="classifier")
    cases.perturb(adapter)
    trimtab.save(model, tmp_path)
    other = BERT.model().to(dtype)
    with pytest.warns(UserWarning, match=r"qlora, trained over a base in nf4, and at 4 sites") as w:
        found = trimtab.load(other, tmp_path)
    assert w[0].filename == __file__
    assert {m for _, m in found.entries if m.name != "whole"} == {
        trimtab.LoRA(rank=2, alpha=3.0, rslora=True)
    }
    ours = {key.replace(".lora.", ".qlora."): tensor for key, tensor in found.tensors().items()}
    assert ours.keys() == adapter.tensors().keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in adapter.tensors().items())
    plain = BERT.model().to(dtype)
    trimtab.attach(plain, trimtab.LoRA(rank=2, alpha=3.0, rslora=True), ["query", "value"])
    with torch.no_grad():
        for key, tensor in plain._trimtab.adapter(None).tensors().items():
            tensor.copy_(found.tensors()[key])
    taps: list[Tensor] = []
    for one in (other, plain):  # beneath the head, which is the adapter's own there
        one.bert.register_forward_hook(lambda m, x, y: taps.append(y[0]))
        cases.logits(one.eval(), BERT.batch())
    assert torch.equal(*taps)
    again = trimtab.quantise(BERT.model(), "nf4")
    assert trimtab.load(again, tmp_path).entries == adapter.entries
    with pytest.raises(trimtab.SiteNotFound, match="quantise the model first"):
        trimtab.attach(BERT.model(), trimtab.QLoRA(), "query")


def test_what_changes_nothing_is_merged_into_codes() -> None:
    """An untrained adapter is the base: no code would change, so that nothing is lost by leaving
    them. One number away it is refused."""
    model = trimtab.quantise(BERT.model(), "nf4")
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2), "query")
    before, outputs = bits(model), cases.logits(model.eval(), BERT.batch())
    trimtab.merge(model)
    assert torch.equal(cases.logits(model, BERT.batch()), outputs)
    trimtab.unmerge(model)
    after = bits(model)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    with torch.no_grad():
        adapter.members[0].tensors()["B"][0, 0] = 1.0
    with pytest.raises(trimtab.InputError, match="holds codes"):
        trimtab.merge(model)
    trimtab.merge(model, dequantise=True)


def test_what_would_train_codes_is_refused() -> None:
    model = trimtab.quantise(BERT.model(), "nf4")
    with pytest.raises(trimtab.InputError, match=r"full trains .*codes do not train"):
        trimtab.attach(model, trimtab.Full())
    trimtab.attach(model, trimtab.Head())


def test_quantising_and_its_refusals() -> None:
    model = BERT.model()
    with pytest.raises(trimtab.InputError, match=r"no format is called 'nf5'.*nf4"):
        trimtab.quantise(model, "nf5")
    with pytest.raises(trimtab.StateError, match="has no quantised map"):
        trimtab.dequantise(model)
    with pytest.raises(trimtab.SiteNotFound, match=r"called 'clasifier'.*'classifier'"):
        trimtab.quantise(model, "nf4", skip=["clasifier"])
    trimtab.quantise(model, "nf4", skip=["classifier", "*.layer.0.*"])
    kinds = {n: type(m).__name__ for n, m in model.named_modules() if hasattr(m, "in_features")}
    assert kinds["bert.encoder.layer.0.output.dense"] == kinds["classifier"] == "Linear"
    assert kinds["bert.encoder.layer.1.output.dense"] == "Linear4bit"
    with pytest.raises(trimtab.SiteNotFound, match="no linear map to quantise"):
        trimtab.quantise(BERT.model(), skip="*")
    with pytest.raises(
        trimtab.SiteNotFound, match=r"no module is called 'clasifier'.*'classifier'"
    ):
        trimtab.quantise(BERT.model(), skip="clasifier")
    trimtab.attach(model, trimtab.LoRA())
    for verb in (trimtab.quantise, trimtab.dequantise):
        with pytest.raises(trimtab.StateError, match="before attaching"):
            verb(model)
    assert trimtab.summary(model).total == sum(p.numel() for p in BERT.model().parameters())


def test_tied_maps_stay() -> None:
    model = trimtab.quantise(cases.by_name("qwen3").model(), skip=())
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("to", sorted(FORMATS))
def test_an_adapter_fits_the_base_in_any_precision(to: str, tmp_path: Path) -> None:
    model = trimtab.quantise(BERT.model(), to)
    cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=2)))
    trimtab.save(model, tmp_path)
    whole = BERT.model()
    trimtab.load(whole, tmp_path)
    off = BERT.outputs(whole, BERT.batch()) - BERT.outputs(model, BERT.batch())
    assert off.abs().max() < 1


def _loaded(to: str, folder: Path) -> Any:
    from transformers import BertForSequenceClassification, BitsAndBytesConfig, TorchAoConfig

    BERT.model().save_pretrained(folder)
    if to.startswith("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig

        four = IntxWeightOnlyConfig(weight_dtype=torch.int4)
        config: Any = TorchAoConfig(
            Int8WeightOnlyConfig() if to == "torchao-int8" else four,
            modules_to_not_convert=["classifier"],
        )
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=to == "nf4",
            load_in_8bit=to == "int8",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=["classifier"],
        )
    return BertForSequenceClassification.from_pretrained(
        folder, quantization_config=config, device_map="cpu"
    )


def _base(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in bits(model).items() if ".deltas." not in name}


@pytest.mark.parametrize("to", sorted(FORMATS))
def test_the_trainer_takes_what_transformers_quantised(to: str, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = _loaded(to, tmp_path / "base")
    rows = [{k: v[0] for k, v in BERT.batch().items()} for _ in range(8)]
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=4,
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    with pytest.raises(ValueError, match="purely quantized"):
        Trainer(model, arguments, train_dataset=rows)
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2), train="classifier")
    before = _base(model)
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    moved = [t for n, t in adapter.tensors().items() if n.endswith("lora.B")]
    assert all(t.abs().max() > 0 for t in moved)
    assert before.keys() == _base(model).keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in _base(model).items())
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    model.eval()
    outputs = BERT.outputs(model, BERT.batch())
    trimtab.merge(model, dequantise=True)
    trimtab.detach(model, keep=True).save_pretrained(tmp_path / "merged")
    again = type(model).from_pretrained(tmp_path / "merged").eval()
    assert not hasattr(again.config, "quantization_config")
    assert (BERT.outputs(again, BERT.batch()) - outputs).abs().max() < (
        0.1 if to == "int8" else 1e-4
    )


def test_without_adapters_the_trainer_refuses_again(tmp_path: Path) -> None:
    from transformers.trainer_utils import validate_quantization_for_training

    model = _loaded("nf4", tmp_path)
    trimtab.attach(model, trimtab.LoRA(rank=2))
    validate_quantization_for_training(model)
    again = pickle.loads(pickle.dumps(model.hf_quantizer))
    assert again.is_qat_trainable
    trimtab.detach(model)
    with pytest.raises(ValueError, match="purely quantized"):
        validate_quantization_for_training(model)
