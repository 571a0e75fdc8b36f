"""LoRA in diffusers' own file, with diffusers as the oracle; UNets and diffusion transformers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import trimtab as tt
from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.match import sites
from trimtab.store.describe import describe

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

SIZE = 16
BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
PLANES = {"in_channels": 1, "out_channels": 1, "sample_size": SIZE}
WEIGHTS = "pytorch_lora_weights.safetensors"
SAFE = {"weight_name": WEIGHTS, "use_safetensors": True}


def unet() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**PLANES, **BLOCKS, cross_attention_dim=12).eval()


def flux() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "axes_dims_rope": (2, 2, 4)}
    told = {"joint_attention_dim": 12, "pooled_projection_dim": 10, "in_channels": 4}
    layers = {"num_layers": 1, "num_single_layers": 1, "patch_size": 1}
    return diffusers.FluxTransformer2DModel(**sizes, **told, **layers).eval()


def dit() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "patch_size": 4}
    return diffusers.DiTTransformer2DModel(**PLANES, **sizes, num_embeds_ada_norm=4).eval()


MODELS = {"unet": unet, "transformer": flux, "dit": dit}


@torch.no_grad()
def said(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, diffusers.FluxTransformer2DModel):
        x, text = (torch.randn(1, 6, n, generator=generator) for n in (4, 12))
        told = {"pooled_projections": torch.ones(1, 10), "timestep": torch.tensor([0.4])}
        ids = {"img_ids": torch.arange(18.0).view(6, 3), "txt_ids": torch.zeros(6, 3)}
        return model(x, encoder_hidden_states=text, **told, **ids).sample
    x = torch.randn(2, 1, SIZE, SIZE, generator=generator)
    if isinstance(model, diffusers.UNet2DConditionModel):
        told = {"encoder_hidden_states": torch.ones(2, 3, 12)}
    else:
        told = {"class_labels": torch.tensor([0, 3])}
    return model(x, timestep=torch.tensor([7, 500]), **told).sample


def filled(adapter: Any) -> None:
    """As if trained: B is no longer zero."""
    torch.manual_seed(2)
    with torch.no_grad():
        for tensor in adapter.tensors().values():
            tensor.normal_(std=0.1)


CASES = [
    ("unet", "attention", tt.LoRA(rank=4, alpha=6.0)),
    ("unet", ["*.conv1", "*.conv_shortcut", "*.proj_in", "to_q"], tt.LoRA(rank=2, alpha=5.0)),
    ("unet", "all-linear", tt.LoRA(rank=3, alpha=6.0, rslora=True)),
    ("unet", "query", tt.DoRA(rank=2)),
    ("transformer", "attention", tt.LoRA(rank=4, alpha=2.0)),
    ("transformer", "all-linear", tt.LoRA(rank=2)),
]


@pytest.mark.parametrize(("kind", "to", "method"), CASES)
def test_diffusers_computes_the_same_with_the_file(
    tmp_path: Path, kind: str, to: Any, method: Any
) -> None:
    ours, theirs, again = (MODELS[kind]() for _ in range(3))
    before = said(ours)
    filled(tt.attach(ours, method, to=to, name="style"))
    tt.save(ours, tmp_path, format="diffusers")
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
    theirs.load_lora_adapter(str(tmp_path), prefix=kind, **SAFE)
    expected = said(ours)
    assert (expected - before).norm() > 1e-3 * before.norm()
    torch.testing.assert_close(said(theirs), expected, rtol=1e-4, atol=1e-5)
    assert tt.load(again, tmp_path).name == "style"
    torch.testing.assert_close(said(again), expected, rtol=0, atol=0)


def test_different_ranks_and_alphas_at_some_sites(tmp_path: Path) -> None:
    ours, theirs = unet(), unet()
    plan = {"query": tt.LoRA(rank=4, alpha=1.0), "attention": tt.LoRA(rank=2, alpha=3.0)}
    filled(tt.attach(ours, plan))
    tt.save(ours, tmp_path, format="diffusers")
    theirs.load_lora_adapter(str(tmp_path), prefix="unet", **SAFE)
    torch.testing.assert_close(said(theirs), said(ours), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_file_of_diffusers_is_loaded(tmp_path: Path, prefixed: bool) -> None:
    theirs, ours = unet(), unet()
    wanted = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["to_k", "to_out.0", "conv2"])
    theirs.add_adapter(wanted)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            if "lora_" in name:
                tensor.normal_(std=0.1)
    if prefixed:
        weights = peft.get_peft_model_state_dict(theirs)
        metadata = {"unet_lora_adapter_metadata": theirs.peft_config["default"].to_dict()}
        pipeline = diffusers.StableDiffusionPipeline
        pipeline.save_lora_weights(tmp_path, unet_lora_layers=weights, **metadata)
    else:
        theirs.save_lora_adapter(tmp_path)
    tt.load(ours, tmp_path)
    torch.testing.assert_close(said(ours), said(theirs), rtol=1e-4, atol=1e-5)


def test_names_of_older_programs_and_their_alphas(tmp_path: Path) -> None:
    """Without a configuration: ranks by the shapes, alphas as they stand beside."""
    ours, theirs = unet(), unet()
    path = "mid_block.attentions.0.transformer_blocks.0.attn1"
    torch.manual_seed(4)
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    old = {
        f"unet.{path}.processor.to_q_lora.down.weight": down,
        f"unet.{path}.processor.to_q_lora.up.weight": up,
        f"unet.{path}.to_v.lora.down.weight": down + 1,
        f"unet.{path}.to_v.lora.up.weight": up + 1,
        f"unet.{path}.to_v.alpha": torch.tensor(4.0),
    }
    save_file(old, tmp_path / WEIGHTS)
    with torch.no_grad():
        attention = theirs.get_submodule(path)
        attention.to_q.weight += up @ down
        attention.to_v.weight += 4 / 2 * (up + 1) @ (down + 1)
    tt.load(ours, tmp_path)
    torch.testing.assert_close(said(ours), said(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("method", [tt.LoRA(rank=2), tt.IA3(), tt.BitFit()], ids=lambda m: m.name)
def test_a_plain_loop_of_denoising_then_merge_and_files(
    tmp_path: Path, kind: str, method: tt.Method
) -> None:
    """The loop that diffusers' guide has: noise, time, the network's answer, the squared error."""
    model, again = MODELS[kind](), MODELS[kind]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    to = ["*.conv1", "attention", "mlp"] if kind == "unet" and method.name == "lora" else None
    tt.attach(model, method, **({} if to is None else {"to": to}))
    noise_of, losses = diffusers.DDPMScheduler(), []
    optimizer = torch.optim.AdamW(tt.parameters(model), lr=1e-2)
    x = torch.linspace(-1, 1, SIZE * SIZE).view(1, 1, SIZE, SIZE).expand(2, -1, -1, -1)
    told = {"class_labels": torch.tensor([0, 1])}
    if kind == "unet":
        told = {"encoder_hidden_states": torch.ones(2, 3, 12)}
    torch.manual_seed(5)
    noise, times = torch.randn(x.shape), torch.tensor([300, 700])
    for _ in range(6):
        out = model(noise_of.add_noise(x, noise, times), timestep=times, **told).sample
        loss = (out[:, :1] - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    expected = said(model)
    tt.merge(model)
    torch.testing.assert_close(said(model), expected, rtol=1e-4, atol=1e-4)
    tt.unmerge(model)
    torch.testing.assert_close(said(model), expected, rtol=1e-4, atol=1e-4)
    tt.load(again, tt.save(model, tmp_path))
    torch.testing.assert_close(said(again), expected)
    tt.detach(model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-5, atol=1e-5)


def test_the_roles_of_a_unet() -> None:
    known = {site.name: site.roles for site in sites(unet())}
    block = "mid_block.attentions.0.transformer_blocks.0"
    assert {"attention", "query"} <= known[f"{block}.attn1.to_q"]
    assert {"attention", "value"} <= known[f"{block}.attn2.to_v"]
    assert "mlp" in known[f"{block}.ff.net.2"]
    assert "attention" not in known[f"{block}.ff.net.2"]
    assert not any("head" in roles for roles in known.values())  # its last map is a convolution


def test_what_diffusers_file_cannot_hold(tmp_path: Path) -> None:
    model = flux()
    tt.attach(model, tt.IA3(), to="attention")
    with pytest.raises(InputError, match="LoRA alone"):
        tt.save(model, tmp_path, format="diffusers")
    other = dit()
    tt.attach(other, tt.LoRA(rank=1), to="attention")
    with pytest.raises(InputError, match="this model is a DiTTransformer2DModel"):
        tt.save(other, tmp_path, format="diffusers")
    assert not list(tmp_path.iterdir())


def test_files_of_another_network_and_of_several(tmp_path: Path) -> None:
    model = unet()
    filled(tt.attach(model, tt.LoRA(rank=2), to="attention"))
    tt.save(model, tmp_path, format="diffusers")
    with pytest.raises(AdapterMismatch, match="is of a unet, and this model is a Flux"):
        tt.load(flux(), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({**tensors, "text_encoder.q.lora_A.weight": torch.ones(2, 2)}, tmp_path / WEIGHTS)
    again = unet()
    with pytest.warns(UserWarning, match="acts on text_encoder, too"):
        tt.load(again, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved = describe(tmp_path)
    assert saved.format == "diffusers"
    save_file({"lora_unet_mid_attn.lora_down.weight": torch.ones(2, 2)}, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match="kohya"):
        tt.load(unet(), tmp_path)


def test_the_configuration_lies_where_diffusers_looks(tmp_path: Path) -> None:
    model = unet()
    tt.attach(model, tt.LoRA(rank=2, alpha=9.0), to="query")
    tt.save(model, tmp_path, format="diffusers")
    from safetensors import safe_open

    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        told = json.loads(file.metadata()["lora_adapter_metadata"])
        keys = list(file.keys())
    assert (told["unet.r"], told["unet.lora_alpha"]) == (2, 9.0)
    assert all(key.startswith("unet.") and ".lora_" in key for key in keys)
