"""Which modules are the head: what a model puts upon its pre-trained body."""

from __future__ import annotations

from torch import nn

from trimtab.core.host import Deltas
from trimtab.core.walk import base_parameters, plain, walk


def heads(model: nn.Module) -> list[str]:
    """Names of the head's modules.

    In transformers' models that is whatever with parameters lies outside the pre-trained body
    (`base_model_prefix`), or the output embedding of a model that is its own body (T5), or what
    follows the one child that is a model of its own (Whisper's encoder, to classify). In any
    other module it is the last linear map, in order of definition; one that ends in a convolution
    (a UNet) has none.
    """
    base = getattr(model, "base_model", None)
    if isinstance(base, nn.Module):
        children = list(model.named_children())
        if base is not model:
            return [name for name, child in children if child is not base and _is_part(child)]
        output = getattr(model, "get_output_embeddings", lambda: None)()
        if output is not None:
            return [name for name, module in walk(model) if module is output][:1]
        places = [i for i, (_, child) in enumerate(children) if child is body(model)]
        after = children[places[0] + 1 :] if places else []
        return [name for name, child in after if _is_part(child)]
    maps = [(name, m) for name, m in walk(model) if hasattr(m, "out_features") or _convolves(m)]
    return [name for name, module in maps[-1:] if not _convolves(module)]


def _convolves(module: nn.Module) -> bool:
    return isinstance(plain(module), nn.modules.conv._ConvNd)


def body(model: nn.Module) -> nn.Module | None:
    """The pre-trained part of a model of transformers; nothing of a model that is a body itself."""
    base = getattr(model, "base_model", None)
    if base is not model:
        return base if isinstance(base, nn.Module) else None
    whole = [one for one in model.children() if isinstance(_base(one), nn.Module)]
    return whole[0] if len(whole) == 1 else None


def _base(module: nn.Module) -> object:
    return getattr(module, "base_model", None)


def _is_part(child: nn.Module) -> bool:
    return not isinstance(child, Deltas) and any(True for _ in child.parameters())


def drawn(model: nn.Module) -> list[str]:
    """Those of them that a checkpoint left at random, where that can be known.

    transformers marks the parameters that it fills from a checkpoint. A head has no mark, beside a
    body that has, if the checkpoint had none that fits; and it is as it was drawn if it was written
    to once only. The output embedding is left out: its rows may have been added since.
    """
    if not any(_filled(parameter) for _, parameter in base_parameters(model)):
        return []
    output = getattr(model, "get_output_embeddings", lambda: None)()
    found = []
    for name in heads(model):
        module = model.get_submodule(name)
        own = [parameter for _, parameter in base_parameters(module)]
        fresh = not any(_filled(one) or one._version > 1 for one in own)
        if fresh and plain(module) is not (output and plain(output)):
            found.append(name)
    return found


def _filled(parameter: nn.Parameter) -> bool:
    return getattr(parameter, "_is_hf_initialized", False)
