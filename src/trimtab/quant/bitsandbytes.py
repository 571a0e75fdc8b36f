"""bitsandbytes: maps in 4 bits (NF4, FP4) and in 8 (LLM.int8())."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from trimtab.core.quantised import Library, coded, dtype, register


def _knows(module: nn.Module) -> bool:
    ours = any(c.__module__.startswith("bitsandbytes.") for c in type(module).__mro__)
    return ours and coded(module)


def _weight(module: Any) -> Tensor:
    from bitsandbytes import functional

    own = module.weight
    if own.__class__.__name__ == "Params4bit":
        _unpack(module)
        return functional.dequantize_4bit(own.data, own.quant_state)
    codes, scales = (own.CB, own.SCB) if own.CB is not None else (own.data, module.state.SCB)
    return functional.int8_vectorwise_dequant(codes, scales).to(dtype(module))


def _form(module: Any) -> str:
    state = getattr(module.weight, "quant_state", None)
    return "int8" if state is None else str(state.quant_type)


def _unpack(module: Any) -> None:
    """Undo the packing for inference on a CPU, which gives no gradient."""
    from bitsandbytes import functional

    own = module.weight
    if getattr(own.quant_state, "packing_format_for_cpu", False):
        own.data, own.quant_state = functional._convert_weight_packed_for_cpu_inverse(
            own.data, own.quant_state
        )


def _hold(module: Any) -> None:
    """On a CPU with bf16 instructions, a map in 4 bits is packed anew at the first inference: its
    double quantisation is lost, and no gradient passes from then on. Under adapters it stays as it
    is; what was packed before is unpacked, its scales rounded to bf16 by then."""
    own = module.weight
    if own.__class__.__name__ == "Int8Params":
        if own.CB is not None:
            module.init_8bit_state()
        own.SCB = module.state.SCB  # without it no checkpoint loads once the module has run
    if getattr(module, _PACKS, False):
        _unpack(module)
        setattr(module, _PACKS, False)
        module.__dict__[_BEFORE] = True


def _release(module: Any) -> None:
    if module.__dict__.pop(_BEFORE, False):
        setattr(module, _PACKS, True)


_PACKS, _BEFORE = "support_avx512bf16_for_cpu", "_packs_before"

register(Library("bitsandbytes", _knows, _weight, _form, _hold, _release))


def nf4(linear: nn.Linear) -> nn.Module:
    """The map in 4 bits, NormalFloat, its scales quantised once more (arXiv:2305.14314)."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    out, inp = linear.weight.shape
    new = Linear4bit(inp, out, linear.bias is not None, quant_type="nf4", device="meta")
    setattr(new, _PACKS, False)  # nor before it has an adapter: see `_hold`
    new.weight = Params4bit(
        linear.weight.detach().clone(), compress_statistics=True, quant_type="nf4", module=new
    )
    return _placed(new, linear)


def int8(linear: nn.Linear) -> nn.Module:
    """The map in 8 bits, a scale a row (arXiv:2208.07339)."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    out, inp = linear.weight.shape
    new = Linear8bitLt(inp, out, linear.bias is not None, has_fp16_weights=False, device="meta")
    new.weight = Int8Params(linear.weight.detach().clone(), False, has_fp16_weights=False)
    return _placed(new, linear)


def _placed(new: Any, linear: nn.Linear) -> nn.Module:
    """On the map's device, where the codes are made, with its bias."""
    new.bias = linear.bias
    return new.to(linear.weight.device).requires_grad_(False).train(linear.training)
