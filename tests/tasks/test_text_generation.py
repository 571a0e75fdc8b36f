"""Causal language models: what counts in the loss, what is asked and compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torch.nn.functional as F
from places import shared

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tasks.tokens import IGNORED
from trimtab.tune.config import Config
from trimtab.tune.run import tune

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def stories() -> str:
    return str(shared("models", "stories260K"))


def table(*rows: dict[str, Any]) -> datasets.Dataset:
    return datasets.Dataset.from_list(list(rows))


def opened(**options: Any) -> tuple[Any, Any, Any]:
    """(task, tokenizer, model) of the story teller."""
    task = lookup("text-generation", options)
    processor = task.processor(stories())
    return task, processor, task.model(stories(), [], processor, torch.float32, False)[0].eval()


def test_blocks_are_the_texts_end_to_end() -> None:
    task, processor, _ = opened()
    texts = ["Once upon a time there was a cat.", "It slept.", "The end came soon after that."]
    rows = table(*({"text": text} for text in texts))
    blocks = task.encode_for_training(rows, processor, [], 16)
    assert max(block["length"] for block in blocks.examples) == 16
    whole = [ids for text in texts for ids in [*processor(text)["input_ids"], 2]]
    assert sorted(i for block in blocks.examples for i in block["input_ids"]) == sorted(whole)
    assert all(block["labels"] == block["input_ids"] for block in blocks.examples)


@torch.no_grad()
def test_only_answers_count() -> None:
    """The loss is that of the answer's tokens given all before them."""
    task, processor, model = opened(form="answer", template="Q: {prompt} A: ")
    rows = table({"prompt": "Who slept?", "answer": "the cat"}, {"prompt": "Why?", "answer": "so"})
    encoded = task.encode(rows, processor, [], 64)
    batch = task.collate(encoded.examples, processor)
    total, count = 0.0, 0
    for row in rows:
        before = processor(f"Q: {row['prompt']} A: ")["input_ids"]
        after = [*processor(row["answer"], add_special_tokens=False)["input_ids"], 2]
        logits = model(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        total += float(F.cross_entropy(logits, torch.tensor(after), reduction="sum"))
        count += len(after)
    assert float(task.loss(model, batch)[0]) == pytest.approx(total / count, rel=1e-4)
    found = task.ask(model, batch, processor).sum(0)
    assert found == pytest.approx([total, count], rel=1e-4)


def test_of_a_chat_only_the_assistant_s_turns_count() -> None:
    processor = lookup("text-generation").processor(stories())
    processor.chat_template = TEMPLATE
    task = lookup("text-generation", {"form": "chat"})
    chat = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "a dog"},
    ]
    example = task.encode(table({"messages": chat}), processor, [], 200).examples[0]
    counted = [i for i in example["labels"] if i != IGNORED]
    assert processor.decode(counted).replace(" ", "") == "acat\nadog\n".replace(" ", "")
    asked = task.encode(table({"messages": chat}), processor, None, 200).examples[0]
    assert processor.decode(asked["input_ids"]).endswith("And?\n<assistant>")


def test_a_template_that_writes_the_last_turn_otherwise() -> None:
    """As Qwen3's does, whose last turn has a place for thoughts, and the turns before it none."""
    processor = lookup("text-generation").processor(stories())
    processor.chat_template = TEMPLATE.replace(
        "{{ m['content'] }}",
        "{% if loop.last and m['role'] == 'assistant' %}(no thoughts) {% endif %}"
        "{{ m['content'] }}",
    )
    task = lookup("text-generation", {"form": "chat"})
    said = (("user", "Hello"), ("assistant", "a cat"), ("user", "And?"), ("assistant", "a dog"))
    chat = [{"role": role, "content": content} for role, content in said]
    example = task.encode(table({"messages": chat}), processor, [], 200).examples[0]
    counted = processor.decode([i for i in example["labels"] if i != IGNORED])
    assert counted.replace(" ", "") == "acat\n(nothoughts)adog\n"


@torch.no_grad()
def test_a_prompt_is_read_whole_where_there_is_room() -> None:
    """The longest row of training says how much is read, not how much may be written after it."""
    task, processor, model = opened(form="answer", generate=True, max_new_tokens=128)
    rows = table({"prompt": "Once upon a time there was a cat. It", "answer": "slept"})
    encoded = task.encode(rows, processor, [], 64)
    prompt = processor("Once upon a time there was a cat. It\n")["input_ids"]
    assert encoded.examples[0]["prompt"] == prompt
    (found,) = task.ask(model, task.collate(encoded.examples, processor), processor)
    own = model.generate(torch.tensor([prompt]), max_new_tokens=128, do_sample=False)
    assert found.tolist() == own[0, len(prompt) :].tolist()


@torch.no_grad()
def test_of_a_prompt_that_leaves_no_room_the_end_is_read() -> None:
    task, processor, model = opened(form="answer", generate=True, max_new_tokens=500)
    rows = table({"prompt": "There was a cat. " * 80, "answer": "so"})
    asked = task.encode(rows, processor, None, 512)
    (found,) = task.ask(model, task.collate(asked.examples, processor), processor)
    assert 0 < len(found) <= 256  # half of the positions are the prompt's


def test_a_chat_without_an_answer_is_not_compared() -> None:
    row = {"messages": [{"role": "user", "content": "Hello"}]}
    fault = lookup("text-generation", {"form": "chat", "generate": True}).fault(row)
    assert fault == "the last message is not the assistant's: there is no answer to compare with"
    assert lookup("text-generation", {"form": "chat"}).fault(row) is None


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    with pytest.raises(InputError, match="has no chat template"):
        lookup("text-generation", {"form": "chat"}).processor(stories())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"form": "poem"}, "text, answer or chat"),
        ({"form": "answer", "template": "Q:"}, "where the {prompt} stands"),
        ({"generate": True}, "plain texts do not have"),
        ({"size": 3}, "has no option 'size'"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_options_that_make_no_sense_are_refused(options: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        lookup("text-generation", options)


def test_a_story_teller_learns_shakespeare(
    given: Callable[..., Path], quick: Callable[..., Config]
) -> None:
    text = shared("data", "tinyshakespeare", "input.txt").read_text(encoding="utf8")
    parts = [{"text": part} for part in text.split("\n\n") if part.strip()]
    data = given(train=parts[:150], validation=parts[150:170], test=parts[170:200])
    config = quick(model=stories(), data=data, task="text-generation", max_length=128, max_steps=20)
    metrics = tune(config, quiet=True)
    base, adapted = metrics["baselines"]["base"]["value"], metrics["test"]["value"]
    assert 1 < adapted < 0.8 * base
    assert metrics["gain_over"]["base"]["high"] < 0  # less is better
    again = evaluate(config.out, None, "test")
    assert again["value"] == metrics["test"]
    told = predict(config.out, str(data / "test.jsonl"))
    assert len(told) == 30
    assert all(row["generated"] for row in told[:3])
    log = [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert metrics["validation"]["value"] < 1.2 * math.exp(min(losses))


def test_answers_are_generated_and_compared_after_their_mark(
    given: Callable[..., Path], quick: Callable[..., Config]
) -> None:
    lines = shared("data", "gsm8k", "train.jsonl").read_text(encoding="utf8").splitlines()
    rows = sorted((json.loads(line) for line in lines), key=lambda row: len(row["question"]))[:24]
    data = given(train=rows[:16], validation=rows[16:20], test=rows[20:24])
    options = {"form": "answer", "generate": True, "after": "####", "max_new_tokens": 8}
    config = quick(
        model=stories(), data=data, task="text-generation", task_arg=options, max_steps=2
    )
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "exact_match"
    assert metrics["test"]["n"] == 4
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
