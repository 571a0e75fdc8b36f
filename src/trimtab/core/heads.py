"""Which modules are the head: what a model puts upon its pre-trained body."""

from __future__ import annotations

from torch import nn

from trimtab.core.host import Deltas
from trimtab.core.walk import walk


def heads(model: nn.Module) -> list[str]:
    """Names of the head's modules.

    In transformers' models that is whatever with parameters lies outside the pre-trained body
    (`base_model_prefix`), or the output embedding of a model that is its own body (T5). In any
    other module it is the last linear map, in order of definition.
    """
    body = getattr(model, "base_model", None)
    if isinstance(body, nn.Module):
        if body is not model:
            return [
                name
                for name, child in model.named_children()
                if child is not body
                and not isinstance(child, Deltas)
                and any(True for _ in child.parameters())
            ]
        output = getattr(model, "get_output_embeddings", lambda: None)()
        return [name for name, module in walk(model) if module is output][:1]
    linears = [name for name, module in walk(model) if hasattr(module, "out_features")]
    return linears[-1:]
