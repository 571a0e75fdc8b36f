"""A prompt with HF PEFT's numbers gives HF PEFT's outputs, however it is made."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from prompted import VOCAB, batch, logits, tiny, tokens
from torch import Tensor

import trimtab

# HF PEFT itself calls what transformers deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),
]

TASK = {"t5": "SEQ_2_SEQ_LM", "bart": "SEQ_2_SEQ_LM"}
HEADS = ("bert", "roberta", "albert", "distilbert")
N = 4
NAMES = pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "t5", "bart", *HEADS])
# What HF PEFT does not find out by itself: ALBERT's embedding is narrower than its blocks.
SIZES = {
    "albert": {"token_dim": 16},
    "distilbert": {"token_dim": 32, "num_layers": 3, "num_attention_heads": 4},
}
CAUSAL = ("llama", "qwen3", "gpt2")


def peers(name: str, config: type, **more: Any) -> Any:
    task = TASK.get(name, "SEQ_CLS" if name in HEADS else "CAUSAL_LM")
    settings = config(task_type=task, num_virtual_tokens=N, **SIZES.get(name, {}), **more)
    return peft.get_peft_model(tiny(name), settings).eval()


def saved(model: Any) -> Tensor:
    """What HF PEFT writes: the prompt alone, of an encoder-decoder the encoder's and the decoder's
    (the latter of which it does not use)."""
    return model.get_prompt_embedding_to_save("default")[:N]


def put(model: Any, method: Any, prompt: Tensor, **options: Any) -> None:
    adapter = trimtab.attach(model, method, **options)
    (delta,) = adapter.members
    with torch.no_grad():
        delta.get_parameter("P" if method.name == "prompt" else "E").copy_(prompt)


def compare(name: str, theirs: Any, ours: Any) -> None:
    inputs = batch(name)
    expected, found = logits(theirs, inputs), logits(ours, inputs)
    if name in CAUSAL:  # theirs has the prompt's positions too; at padding stands nobody's
        real = inputs["attention_mask"].bool()
        expected, found = expected[:, N:][real], found[real]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@NAMES
def test_prompt(name: str) -> None:
    theirs, ours = peers(name, peft.PromptTuningConfig), tiny(name)
    put(ours, trimtab.PromptTuning(length=N, keep=_keep(name)), saved(theirs))
    compare(name, theirs, ours)


def _keep(name: str) -> bool | None:
    """HF PEFT's head reads the first position, which is the prompt's."""
    return True if name in HEADS else None


@pytest.mark.parametrize("submodules", [1, 2])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders_have_one_prompt_used(name: str, submodules: int) -> None:
    theirs = peers(name, peft.PromptTuningConfig, num_transformer_submodules=submodules)
    assert len(theirs.get_prompt_embedding_to_save("default")) == N * submodules
    ours = tiny(name)
    put(ours, trimtab.PromptTuning(length=N), saved(theirs))
    compare(name, theirs, ours)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_decoders_prompt_stands_before_its_embeddings(name: str) -> None:
    model, inputs, prompt = tiny(name), batch(name), torch.randn(N, 32)
    decoder = model.get_decoder()
    embeds = decoder.embed_tokens(inputs.pop("decoder_input_ids"))
    longer = torch.cat([prompt.expand(2, -1, -1), embeds], dim=1)
    expected = logits(model, {**inputs, "decoder_inputs_embeds": longer})[:, N:]
    put(model, trimtab.PromptTuning(length=N), prompt, to="decoder-input")
    torch.testing.assert_close(logits(model, batch(name)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoder", ["mlp", "lstm", "none"])
@NAMES
def test_p_tuning(name: str, encoder: str) -> None:
    # A decoder's unused half would be read by the LSTM, in its backward direction.
    made: dict[str, Any] = {
        "encoder_reparameterization_type": "LSTM" if encoder == "lstm" else "MLP"
    }
    made |= {"num_transformer_submodules": 1}
    theirs = peers(name, peft.PromptEncoderConfig, **made, encoder_hidden_size=12)
    ours = tiny(name)
    hidden = {} if encoder == "none" else {"hidden": 12}
    method = trimtab.PTuning(length=N, encoder=encoder, **hidden, keep=_keep(name))
    if encoder == "none":
        put(ours, method, saved(theirs))
    else:
        put_encoder(trimtab.attach(ours, method).members[0], theirs.prompt_encoder.default)
    compare(name, theirs, ours)


@torch.no_grad()
def put_encoder(delta: Any, encoder: Any) -> None:
    """The tensors of HF PEFT's network, of which a prompt of T5 or BART is the first half."""
    delta.E.copy_(encoder.embedding.weight[:N])
    maps = [one for one in encoder.mlp_head if isinstance(one, torch.nn.Linear)]
    for i, one in enumerate(maps):
        delta.get_parameter(f"W{i}").copy_(one.weight)
        delta.get_parameter(f"b{i}").copy_(one.bias)
    if hasattr(encoder, "lstm_head"):
        for key, tensor in encoder.lstm_head.named_parameters():
            delta.get_parameter(key).copy_(tensor)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "t5", "bart"])
def test_equal_tokens(name: str) -> None:
    theirs, ours = peers(name, peft.PromptTuningConfig), tiny(name)
    put(ours, trimtab.PromptTuning(length=N), saved(theirs))
    inputs = {"input_ids": tokens(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(ours.generate(**inputs, **options), theirs.generate(**inputs, **options))


def test_where_a_prompt_starts() -> None:
    """Section 3.2: rows of the vocabulary, those of given words, or uniform in ±0.5."""
    model = tiny("llama")
    table = model.get_input_embeddings().weight

    def started(start: Any) -> Tensor:
        adapter = trimtab.attach(model, trimtab.PromptTuning(length=5, start=start), name="p")
        P = adapter.members[0].P.detach().clone()
        trimtab.detach(model)
        return P

    assert torch.equal(started((7, 9)), table[torch.tensor([7, 9, 7, 9, 7])])
    assert torch.equal(started(list(range(8))), table[:5])
    assert all((table == row).all(1).any() for row in started("vocabulary"))
    assert started("random").abs().max() <= 0.5
    for wrong, text in (
        ((VOCAB,), f"token {VOCAB}, of a vocabulary"),
        ("text", "start is"),
        ((), "start is"),
    ):
        with pytest.raises(trimtab.InputError, match=text):
            started(wrong)


def test_a_scaled_embedding_gives_scaled_rows() -> None:
    model = tiny("bart")
    adapter = trimtab.attach(model, trimtab.PromptTuning(length=2, start=(5, 6)))
    expected = model.get_encoder().embed_tokens(torch.tensor([5, 6]))
    torch.testing.assert_close(adapter.members[0].P, expected)


def test_tokens_to_start_at_are_saved(tmp_path: Any) -> None:
    model = tiny("llama")
    adapter = trimtab.attach(model, trimtab.PromptTuning(length=3, start=[5, 6]))
    trimtab.save(model, tmp_path)
    loaded = trimtab.load(tiny("llama"), tmp_path)
    assert loaded.entries == adapter.entries
    assert adapter.entries[0][1].start == (5, 6)
