"""Distillation: its losses against their equations, every kind of teacher, loops, a real pair."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
import transformers as hf
from language_models import model

import trimtab
from trimtab.recipes.distill import Distiller, hidden_distance, soft_targets
from trimtab.tasks.models import resolve

SMALLER = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


def student(name: str = "bert") -> Any:
    one = model(name).train()
    trimtab.attach(one, trimtab.LoRA(rank=2))
    return one


def teacher(name: str = "bert") -> Any:
    """The same architecture with weights of its own."""
    one = model(name)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return one


def batch(name: str = "bert") -> dict[str, Any]:
    return dict(cases.by_name(name).batch())


def test_soft_targets_by_hand() -> None:
    z, v = torch.tensor([[1.0, 2.0], [0.0, 0.5]]), torch.tensor([[0.0, 3.0], [1.0, 1.0]])
    expected = []
    for ours, theirs in zip(z.tolist(), v.tolist(), strict=True):
        q = [math.exp(one / 2) / sum(math.exp(o / 2) for o in ours) for one in ours]
        p = [math.exp(one / 2) / sum(math.exp(o / 2) for o in theirs) for one in theirs]
        expected.append(4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    assert soft_targets(z, v, 2.0).item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    masked = soft_targets(z, v, 2.0, torch.tensor([0, 1]))
    assert masked.item() == pytest.approx(expected[1], rel=1e-5)
    assert soft_targets(z, z, 3.0).abs().item() < 1e-6


def test_in_great_heat_logits_are_matched() -> None:
    """Hinton 2015, equation 4: the gradient tends to (z - v) / classes, for logits of mean 0."""
    z, v = torch.randn(1, 5), torch.randn(1, 5)
    z, v = (z - z.mean()).requires_grad_(), v - v.mean()
    soft_targets(z, v, 1e3).backward()
    torch.testing.assert_close(z.grad, (z.detach() - v) / 5, atol=2e-3, rtol=1e-2)


def test_hidden_distance_by_hand() -> None:
    a, b = torch.zeros(1, 2, 3), torch.tensor([[[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]]])
    assert hidden_distance(a, b, torch.tensor([[1, 0]])).item() == pytest.approx(14 / 3)
    assert hidden_distance(a, b).item() == pytest.approx((14 / 3 + 81) / 2)


def test_the_mixture() -> None:
    one, other = student(), teacher()
    outputs, taught = one(**batch()), other(**batch())
    soft = soft_targets(outputs.logits, taught.logits, 3.0)
    found = Distiller(one, other, temperature=3.0, alpha=0.7)(batch())
    torch.testing.assert_close(found, 0.7 * soft + 0.3 * outputs.loss)
    alone = {key: value for key, value in batch().items() if key != "labels"}
    torch.testing.assert_close(Distiller(one, other, temperature=3.0)(alone), soft)


def test_a_penalty_counts_once_and_whole() -> None:
    one = model("bert").train()
    trimtab.attach(one, trimtab.AdaLoRA(rank=3, target=2))
    owed = trimtab.penalty(one)
    assert owed > 0
    alone = {key: value for key, value in batch().items() if key != "labels"}
    for given, alpha in ((batch(), 0.25), (alone, 1.0)):
        found = Distiller(one, None, alpha=alpha)(given)
        task = one.eval()(**given).loss if alpha < 1 else 0.0
        one.train()
        torch.testing.assert_close(found, owed + (1 - alpha) * task)  # it begins as its teacher
        found.backward()


@pytest.mark.parametrize("taught_by", ["adapter", "base", "model"])
def test_every_kind_of_teacher(taught_by: str) -> None:
    """It has no dropout, gets no gradient, and leaves everything as it was."""
    one = model("bert").train()
    cases.perturb(trimtab.attach(one, trimtab.IA3(), name="theirs"))
    cases.perturb(trimtab.attach(one, trimtab.LoRA(rank=2), name="ours"))
    other = teacher().train()
    for part in (one, other):
        part.bert.embeddings.dropout.p = 0.5
    given: Any = {"adapter": "theirs", "base": None, "model": other}[taught_by]
    distiller = Distiller(one, given)
    alone = {key: value for key, value in batch().items() if key != "labels"}
    first = distiller._taught(alone).logits
    assert torch.equal(first, distiller._taught(alone).logits)
    if taught_by == "model":
        expected = other.eval()(**alone).logits
        other.train()
    else:
        with trimtab.using(one.eval(), given):
            expected = one(**alone).logits
        one.train()
    torch.testing.assert_close(first, expected)
    distiller(batch()).backward()
    assert other.training
    assert one.training
    assert all(p.grad is None for p in other.parameters())
    got = {key for key, p in one.named_parameters() if p.grad is not None}
    assert len(got) == len(trimtab.parameters(one))
    assert all(".deltas.ours." in key for key in got)


@pytest.mark.parametrize("checkpointing", [None, False, True])
@pytest.mark.parametrize("method", [trimtab.Full(), trimtab.AdaLoRA(rank=3, target=2)], ids=str)
def test_the_base_within_teaches_as_a_copy_of_it_does(method: Any, checkpointing: Any) -> None:
    """Though it speaks between the student's forward pass and its backward pass."""
    one, copy = model("bert").train(), model("bert")
    cases.perturb(trimtab.attach(one, method))
    if checkpointing is not None:
        one.activation_checkpointing_enable({"use_reentrant": checkpointing})
    found = []
    for given in (None, copy):
        one.zero_grad()
        Distiller(one, given)(batch()).backward()
        found.append([p.grad for p in trimtab.parameters(one)])
    assert any(gradient.abs().max() > 0 for gradient in found[0])
    torch.testing.assert_close(*found)


def test_hidden_states_of_other_widths() -> None:
    """A narrow student; the map to the teacher's width trains with it."""
    torch.manual_seed(0)
    narrow = hf.BertForSequenceClassification(hf.BertConfig(**{**cases.BERT, **SMALLER})).train()
    trimtab.attach(narrow, trimtab.LoRA(rank=4))
    distiller = Distiller(narrow, teacher(), layers={1: 1, -1: 2}, hidden=2.0)
    assert len(list(distiller.parameters())) == 4
    optimizer = torch.optim.AdamW([*trimtab.parameters(narrow), *distiller.parameters()], lr=0.02)
    course = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = distiller(batch())
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    assert course[-1] < 0.5 * course[0]
    assert all(p.grad is not None for p in distiller.parameters())


def test_hidden_states_of_the_same_width_need_no_map() -> None:
    one, other = student(), teacher()
    asked = {**batch(), "output_hidden_states": True}
    distiller = Distiller(one, other, alpha=0.0, layers={2: 2}, hidden=3.0)
    assert list(distiller.parameters()) == []
    ours, theirs = one(**asked), other(**asked)
    mask = batch()["attention_mask"]
    apart = hidden_distance(ours.hidden_states[2], theirs.hidden_states[2], mask)
    torch.testing.assert_close(distiller(batch()), ours.loss + 3 * apart)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_language_models(name: str) -> None:
    """Logits count where there is a token: not at padding."""
    one = student(name)
    if name == "t5":
        given = batch(name)
        given["labels"][0, 3:] = -100
        rows = given["labels"] != -100
    else:
        given = {key: value for key, value in batch(name).items() if key != "labels"}
        rows = given["attention_mask"].bool()
    other = teacher(name)
    soft = soft_targets(one(**given).logits[rows], other(**given).logits[rows], 2.0)
    torch.testing.assert_close(Distiller(one, other, alpha=1.0)(given), soft)
    first = Distiller(one, other, alpha=1.0, positions=lambda _: torch.eye(*rows.shape))(given)
    cases.assert_differs(first, soft)


def test_under_the_trainer(tmp_path: Path) -> None:
    """The loss is this one, accumulated as a mean; evaluation too; the maps train."""
    torch.manual_seed(0)
    narrow = hf.BertForSequenceClassification(hf.BertConfig(**{**cases.BERT, **SMALLER}))
    trimtab.attach(narrow, trimtab.LoRA(rank=2))
    distiller = Distiller(narrow, teacher(), layers={-1: -1})
    rows = [{key: value[i] for key, value in batch().items()} for i in (0, 1)] * 4
    arguments = hf.TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        max_steps=4,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = hf.Trainer(narrow, arguments, train_dataset=rows, eval_dataset=rows)
    distiller.teach(trainer)
    before = [p.clone() for p in distiller.parameters()]
    with torch.no_grad():
        at_first = distiller(batch()).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(at_first, rel=1e-4)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(at_first, rel=1e-2)
    assert trainer.evaluate()["eval_loss"] < at_first
    assert all(not torch.equal(a, b) for a, b in zip(before, distiller.parameters(), strict=True))


def test_what_cannot_teach() -> None:
    one = student()
    with pytest.raises(trimtab.InputError, match="alpha from 0 to 1"):
        Distiller(one, None, alpha=2.0)
    with pytest.raises(trimtab.InputError, match="teaches nothing"):
        Distiller(one, one)
    with pytest.raises(trimtab.InputError, match="no adapter is called 'best'"):
        Distiller(one, "best")
    with pytest.raises(trimtab.InputError, match=r"layers is \{.*and not \[1\]"):
        Distiller(one, None, layers=[1])  # type: ignore[arg-type]
    with pytest.raises(trimtab.InputError, match=r"hidden=0.5 weighs hidden states, and layers"):
        Distiller(one, None, hidden=0.5)
    for layers, whose in (({99: 1}, "student"), ({1: 99}, "teacher")):
        with pytest.raises(trimtab.InputError, match=rf"names \[99\] of the {whose}, which has"):
            Distiller(one, None, layers=layers)(batch())
    config = hf.BertConfig(**{**cases.BERT, "num_labels": 5})
    with pytest.raises(trimtab.InputError, match="the same classes"):
        Distiller(one, hf.BertForSequenceClassification(config))(batch())


@pytest.mark.filterwarnings("ignore:.*newly initialized")
def test_a_real_pair() -> None:
    """MiniLM with LoRA learns from MiniLM tuned whole, on texts without labels."""
    path = resolve("minilm")
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    animals, matters = ("cat", "dog", "parrot", "horse"), ("bank", "court", "market", "tax")
    texts = [f"My {one} slept on the sofa" for one in animals]
    texts += [f"The {one} has raised its rates" for one in matters]
    labels = torch.tensor([0] * 4 + [1] * 4)
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    hf.logging.set_verbosity_error()

    def build(seed: int) -> Any:
        torch.manual_seed(seed)
        return hf.AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)

    other = build(0).train()
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-4)
    for _ in range(8):
        optimizer.zero_grad()
        other(**inputs, labels=labels).loss.backward()
        optimizer.step()
    one = build(1)
    trimtab.attach(one, trimtab.LoRA(rank=4), train=["classifier"])
    distiller = Distiller(one.train(), other)

    def measure() -> tuple[float, float]:
        with torch.no_grad():
            ours, theirs = one.eval()(**inputs).logits, other.eval()(**inputs).logits
        one.train()
        agreed = (ours.argmax(-1) == theirs.argmax(-1)).float().mean()
        return soft_targets(ours, theirs).item(), agreed.item()

    apart, agreed = measure()
    optimizer = torch.optim.AdamW(trimtab.parameters(one), lr=3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        distiller(inputs).backward()
        optimizer.step()
    assert measure()[0] < 0.2 * apart
    assert measure()[1] == 1.0 > agreed
