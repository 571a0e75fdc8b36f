"""T-Few: its losses against their equations, a batch of choices against one by one, training."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from language_models import DECODERS, ENCODER_DECODERS, EXAMPLES, model, shared, tokenizer
from torch import Tensor

import trimtab
from trimtab.recipes import t_few
from trimtab.recipes.choices import IGNORED, Example, encode, logits
from trimtab.recipes.t_few import losses, normalised, predict, rate, scores, train

BOTH = pytest.mark.parametrize("name", [*ENCODER_DECODERS, *DECODERS])
X = IGNORED
LABELS = torch.tensor([[[0, 1, X], [2, X, X]], [[1, 1, 1], [X, 0, 2]]])
ANSWERS = torch.tensor([0, 1])


def of(p: Tensor) -> Tensor:
    return p.clamp(min=1e-30).log()


def test_losses_by_hand() -> None:
    drawn = torch.randn(2, 2, 3, 4)
    p = drawn.softmax(-1)
    found = losses(drawn, LABELS, ANSWERS)
    right = [p[0, 0, 0, 0], p[0, 0, 1, 1], p[1, 1, 1, 0], p[1, 1, 2, 2]]
    wrong = [p[0, 1, 0, 2], *(p[1, 0, t, 1] for t in range(3))]
    assert found.lm.item() == pytest.approx(-sum(math.log(one) for one in right) / 4, rel=1e-5)
    unlikely = -sum(math.log(1 - 0.99 * one) for one in wrong) / 4
    assert found.unlikelihood.item() == pytest.approx(unlikely, rel=1e-5)
    betas = torch.tensor(
        [
            [math.log(right[0] * right[1]) / 2, math.log(wrong[0])],
            [sum(math.log(one) for one in wrong[1:]) / 3, math.log(right[2] * right[3]) / 2],
        ]
    )
    ranked = -(betas[0, 0] - betas[0].logsumexp(0) + betas[1, 1] - betas[1].logsumexp(0)) / 2
    assert found.length_normalised.item() == pytest.approx(ranked.item(), rel=1e-5)
    assert found.total.item() == pytest.approx(sum(one.item() for one in found), rel=1e-5)


def test_nothing_is_lost_where_the_right_choice_is_certain() -> None:
    p = torch.zeros(2, 2, 3, 4)
    p[..., 3] = 1.0  # which is in no choice
    for n, answer in enumerate(ANSWERS):
        for t, token in enumerate(LABELS[n, answer]):
            if token != IGNORED:
                p[n, answer, t] = torch.nn.functional.one_hot(token, 4).float()
    found = losses(of(p), LABELS, ANSWERS)
    assert all(one.abs().item() < 1e-6 for one in found)
    turned = losses(of(p), LABELS, 1 - ANSWERS)  # certain of what is wrong: large, but finite
    assert turned.unlikelihood.item() == pytest.approx(-math.log(0.01), rel=1e-4)


def test_unlikelihood_pulls_down_even_what_is_certain() -> None:
    drawn = torch.zeros(1, 2, 1, 3)
    drawn[0, 1, 0, 2] = 30.0
    drawn.requires_grad_()
    losses(drawn, torch.tensor([[[0], [2]]]), torch.tensor([0])).unlikelihood.backward()
    lower = torch.zeros(1, 2, 1, 3)
    lower[0, 1, 0, 2] = 5.0
    lower.requires_grad_()
    losses(lower, torch.tensor([[[0], [2]]]), torch.tensor([0])).unlikelihood.backward()
    assert lower.grad is not None
    assert lower.grad[0, 1, 0, 2] > 0.1
    assert drawn.grad is not None
    assert drawn.grad[0, 1, 0, 2] >= 0


def test_a_choice_alone_has_no_wrong_one() -> None:
    found = losses(torch.randn(1, 1, 2, 4), torch.tensor([[[0, 1]]]), torch.tensor([0]))
    assert found.unlikelihood == 0
    assert found.length_normalised == 0


def alone(one: Any, name: str, example: Example, choice: str) -> float:
    """β as the model itself tells it: its own loss of one choice after one text."""
    made = tokenizer(name)
    text = made(example.text, return_tensors="pt")
    if name in ENCODER_DECODERS:
        labels = made(text_target=choice, return_tensors="pt")["input_ids"]
        return -one(input_ids=text["input_ids"], labels=labels).loss.item()
    ids = made(f"{example.text} {choice}", return_tensors="pt")["input_ids"]
    labels = ids.clone()
    labels[:, : text["input_ids"].shape[1]] = IGNORED
    return -one(input_ids=ids, labels=labels).loss.item()


@BOTH
def test_a_batch_of_choices_equals_one_by_one(name: str) -> None:
    one = model(name)
    cases.perturb(trimtab.attach(one, trimtab.IA3()))
    found = scores(one, tokenizer(name), EXAMPLES)
    with torch.no_grad():
        expected = torch.full_like(found, -torch.inf)
        for n, example in enumerate(EXAMPLES):
            for c, choice in enumerate(example.choices):
                expected[n, c] = alone(one, name, example, choice)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert predict(one, tokenizer(name), EXAMPLES, batch_size=2) == found.argmax(-1).tolist()


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@pytest.mark.parametrize("method", [trimtab.IA3(), trimtab.PromptTuning(length=2)], ids=str)
def test_an_encoder_runs_once_over_a_text(name: str, method: Any) -> None:
    one = model(name)
    cases.perturb(trimtab.attach(one, method))
    batch = encode(one, tokenizer(name), EXAMPLES)
    seen: list[int] = []
    one.get_encoder().register_forward_hook(lambda _, args, out: seen.append(len(out[0])))
    with torch.no_grad():
        once = logits(one, batch)
        assert seen == [len(EXAMPLES)]
        choices = batch.labels.shape[1]
        naive = one(
            input_ids=batch.inputs.repeat_interleave(choices, 0),
            attention_mask=batch.mask.repeat_interleave(choices, 0),
            labels=batch.labels.flatten(0, 1),
        ).logits
    torch.testing.assert_close(once.flatten(0, 1), naive)


LEARNERS = [
    ("t5", trimtab.IA3(), None),
    ("bart", trimtab.LoRA(rank=2), None),
    ("gpt2", trimtab.PrefixTuning(length=2), None),
    ("llama", trimtab.AdaLoRA(rank=4, target=2), torch.optim.AdamW),
]


OWN: dict[str, Any] = {"lr": 0.05}  # of Adafactor


@pytest.mark.parametrize(("name", "method", "optimizer"), LEARNERS, ids=lambda one: str(one)[:9])
def test_any_method_learns(name: str, method: Any, optimizer: Any) -> None:
    """Penalties and schedules included; the base stays as it was."""
    one = model(name)
    before = {key: value.clone() for key, value in one.state_dict().items()}
    trimtab.attach(one, method)
    seen: list[int] = []
    course = train(
        one,
        tokenizer(name),
        EXAMPLES,
        steps=40,
        batch_size=3,
        warmup=4,
        **({"optimizer": optimizer(trimtab.parameters(one), lr=0.02)} if optimizer else OWN),
        on_step=lambda step, found: seen.append(step),
    )
    assert seen == list(range(1, 41))
    assert sum(course[-5:]) < 0.8 * sum(course[:5])
    assert predict(one, tokenizer(name), EXAMPLES) == [example.answer for example in EXAMPLES]
    assert not one.training
    trimtab.detach(one)
    cases.assert_same_state(one, before)


def test_the_rate_is_that_of_the_paper() -> None:
    course = [t_few.RATE * rate(done, 1000, 60) for done in range(1000)]
    assert course[60] == max(course) == 3e-3
    assert course[30] == pytest.approx(3e-3 * 31 / 61)
    assert course[530] == pytest.approx(1.5e-3)
    assert 0 < course[-1] < 1e-5


def test_a_method_says_its_own_rates() -> None:
    """LoRA+: B learns quicker than A, by which the default optimizer goes too."""
    moved = []
    for ratio in (1.0, 50.0):
        torch.manual_seed(1)
        one = model("gpt2")
        adapter = trimtab.attach(one, trimtab.LoRA(rank=2, lr_ratio=ratio))
        with torch.no_grad():
            for delta in adapter.members:
                delta.tensors()["B"].fill_(0.1)
        train(one, tokenizer("gpt2"), EXAMPLES, steps=1, warmup=0)
        moved.append((adapter.members[0].tensors()["B"] - 0.1).abs().max().item())
    assert moved[1] == pytest.approx(50 * moved[0], rel=1e-3)


def test_an_optimizer_of_ones_own() -> None:
    one = model("gpt2")
    trimtab.attach(one, trimtab.IA3())
    optimizer = torch.optim.SGD(trimtab.parameters(one), lr=0.0)
    before = [p.clone() for p in trimtab.parameters(one)]
    train(one, tokenizer("gpt2"), EXAMPLES, steps=2, warmup=0, optimizer=optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, trimtab.parameters(one), strict=True))


@BOTH
def test_long_texts_are_cut_or_refused(name: str) -> None:
    one, made = model(name), tokenizer(name)
    long = [Example("the film was " * 30, ("good", "bad"), 0)]
    batch = encode(one, made, long, max_length=9)
    assert batch.inputs.shape[-1] == 9
    assert batch.labels[0, 0][batch.labels[0, 0] >= 0][0] == made.get_vocab()["good"]
    if name in DECODERS:
        assert (batch.inputs[0, :, 0] == made.bos_token_id).all()
        with pytest.raises(trimtab.InputError, match="cut texts with max_length=40"):
            encode(one, made, long)
        with pytest.raises(trimtab.InputError, match="leaves no text within 1"):
            encode(one, made, long, max_length=1)


def test_what_cannot_be_asked() -> None:
    one, made = model("gpt2"), tokenizer("gpt2")
    trimtab.attach(one, trimtab.IA3())
    with pytest.raises(trimtab.InputError, match="needs choices"):
        Example("text", ())
    with pytest.raises(trimtab.InputError, match="answer 2 is none of the 2"):
        Example("text", ("good", "bad"), 2)
    with pytest.raises(trimtab.InputError, match="no examples"):
        train(one, made, [])
    with pytest.raises(trimtab.InputError, match="example 1 has no answer"):
        train(one, made, [EXAMPLES[0], Example("the film", ("good", "bad"))])
    with pytest.raises(trimtab.InputError, match="steps and batch_size count from 1"):
        train(one, made, EXAMPLES, steps=0)
    with pytest.raises(trimtab.InputError, match="lr must not be negative"):
        train(one, made, EXAMPLES, lr=-1.0)
    adamw = torch.optim.AdamW(trimtab.parameters(one))
    with pytest.raises(trimtab.InputError, match="optimizer has a rate of its own"):
        train(one, made, EXAMPLES, lr=0.1, optimizer=adamw)
    with pytest.raises(trimtab.InputError, match="example 0 must be an Example"):
        train(one, made, [{"text": "a", "choices": ["b"], "answer": 0}])  # type: ignore[list-item]
    with pytest.raises(trimtab.InputError, match="batch_size counts from 1"):
        predict(one, made, EXAMPLES, batch_size=0)
    assert predict(one, made, []) == []


def test_it_goes_on_from_what_was_trained_before(tmp_path: Path) -> None:
    """A pre-trained l, as the paper has it: loaded to train, it starts where it was."""
    one = model("t5")
    trimtab.attach(one, trimtab.IA3())
    before = train(one, tokenizer("t5"), EXAMPLES, steps=30, batch_size=3, warmup=2, lr=0.05)
    trimtab.save(one, tmp_path)
    other = model("t5")
    trimtab.load(other, tmp_path)
    with pytest.raises(trimtab.InputError, match="trainable=True"):
        train(other, tokenizer("t5"), EXAMPLES)
    trimtab.detach(other)
    trimtab.load(other, tmp_path, trainable=True)
    after = train(other, tokenizer("t5"), EXAMPLES, steps=5, batch_size=3, warmup=2, lr=0.05)
    assert after[0] == pytest.approx(before[-1], rel=0.1)
    assert after[0] < 0.8 * before[0]


def test_real_reviews() -> None:
    """A small story teller learns what its reviews are called, and goes on from what was saved."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared("models", "stories260K")
    with shared("data", "rotten_tomatoes", "train.tsv").open(encoding="utf8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))[:32]
    words = {"positive": 0, "negative": 1}
    examples = [
        Example(f"{row['text'][:80]} This is", ("good", "bad"), words[row["label"]]) for row in rows
    ]
    one = AutoModelForCausalLM.from_pretrained(folder)
    made = AutoTokenizer.from_pretrained(folder)
    before = normalised_loss(one, made, examples)
    trimtab.attach(one, trimtab.IA3())
    course = train(one, made, examples, steps=40, warmup=4, lr=0.03)
    after = normalised_loss(one, made, examples)
    assert after < 0.97 * before
    assert sum(course[-10:]) < 0.9 * sum(course[:10])
    found = predict(one, made, examples)
    right = sum(a == example.answer for a, example in zip(found, examples, strict=True))
    assert right > 20  # of the 32 that it was trained on; chance would be 16


def normalised_loss(one: Any, made: Any, examples: list[Example]) -> float:
    batch = encode(one, made, examples)
    with torch.no_grad():
        found = normalised(logits(one, batch), batch.labels)
    return torch.nn.functional.cross_entropy(found, batch.answers).item()
