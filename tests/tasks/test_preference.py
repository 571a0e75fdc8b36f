"""Preferences: tokens, rewards and losses are TRL's; a base is as good as itself; pairs by file and
row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from datasets import Dataset
from places import shared

import trimtab
from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tasks.preference import Preference, common
from trimtab.tune.run import tune
from trimtab.tune.session import read_data

TRL_WARNS = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")
SPEECHES = [
    ("Speak, speak.\n", "You are all resolved rather to die than to famish?", "all You rather are"),
    ("Resolved. ", "First, you know", "Caius Marcius is chief enemy to the people."),
    ("We know't, we know't.\n", "Let us kill him, and", "corn at price our own have we'll and"),
    ("Is't a verdict?\n", "No more talking on't;", "be let it done: away, away!"),
]
PAIRS = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in SPEECHES]


@pytest.fixture(scope="module")
def stories() -> str:
    return str(shared("models", "stories260K"))


def opened(task: Preference, name: str) -> tuple[Any, Any]:
    """The base with an adapter that has moved, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = task.processor(name)
    model, fresh = task.model(name, [], tokenizer, torch.float32, dropout=False)
    head = [key.removesuffix(".weight") for key in fresh]
    adapter = trimtab.attach(model, trimtab.LoRA(rank=4), train=head)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model.eval(), tokenizer


def frozen(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if ".deltas." not in f".{name}"
    }


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": len(PAIRS),
        "per_device_eval_batch_size": len(PAIRS),
        "learning_rate": 1e-3,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


@TRL_WARNS
def test_dpo_is_trls(stories: str, tmp_path: Path) -> None:
    import trl

    task = Preference(beta=0.3)
    model, tokenizer = opened(task, stories)
    examples = task.encode(Dataset.from_list(PAIRS), tokenizer, [], 512)
    batch = task.collate(examples.examples, tokenizer)
    with torch.no_grad():
        loss, judged = task.loss(model, batch)
    rewards = task.rows_of(judged, batch)[..., 0]
    theirs = trl.DPOTrainer(
        model=model,
        ref_model=trimtab.Reference(model),
        args=trl.DPOConfig(**settings(tmp_path), beta=0.3),
        train_dataset=Dataset.from_list(PAIRS),
        eval_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )
    for ours, row in zip(examples.restore(examples.examples), theirs.eval_dataset, strict=True):
        for side in ("chosen", "rejected"):
            assert ours[side] == row["prompt_ids"] + row[f"{side}_ids"]
        assert ours["start"] == len(row["prompt_ids"])
    found = theirs.evaluate()
    assert float(loss) == pytest.approx(found["eval_loss"], rel=1e-4)
    assert rewards.mean(0) == pytest.approx(
        [found["eval_rewards/chosen"], found["eval_rewards/rejected"]], rel=1e-3, abs=1e-5
    )
    own = task.rows_of(judged, batch)[..., 1].mean(0)
    assert own == pytest.approx(
        [found["eval_logps/chosen"], found["eval_logps/rejected"]], rel=1e-4
    )
    margins = rewards[:, 0] - rewards[:, 1]
    assert margins.mean() == pytest.approx(found["eval_rewards/margins"], rel=1e-3)
    assert (margins > 0).mean() == pytest.approx(found["eval_rewards/accuracies"])


@TRL_WARNS
def test_a_reward_model_is_trls(stories: str, tmp_path: Path) -> None:
    """And TRL's own trainer trains one with an adapter."""
    import trl

    task = Preference(kind="reward")
    model, tokenizer = opened(task, stories)
    examples = task.encode(Dataset.from_list(PAIRS), tokenizer, [], 512)
    batch = task.collate(examples.examples, tokenizer)
    with torch.no_grad():
        loss, judged = task.loss(model, batch)
    margins = np.diff(task.rows_of(judged, batch)[..., 0])
    theirs = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(**settings(tmp_path)),
        train_dataset=Dataset.from_list(PAIRS),
        eval_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )
    for ours, row in zip(examples.restore(examples.examples), theirs.eval_dataset, strict=True):
        assert (ours["chosen"], ours["rejected"]) == (row["chosen_ids"], row["rejected_ids"])
    found = theirs.evaluate()
    assert float(loss) == pytest.approx(found["eval_loss"], rel=1e-4)
    assert -margins.mean() == pytest.approx(found["eval_margin"], rel=1e-3, abs=1e-5)
    assert (margins < 0).mean() == pytest.approx(found["eval_accuracy"])
    before = frozen(model)
    theirs.train()
    losses = [row["loss"] for row in theirs.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen(model).items())


def test_a_base_is_as_good_as_itself(stories: str) -> None:
    task = Preference()
    model, tokenizer = opened(task, stories)
    examples = task.encode(Dataset.from_list(PAIRS), tokenizer, [], 512).examples
    batch = task.collate(examples, tokenizer)
    with torch.no_grad():
        assert task.ask(model, batch, tokenizer)[..., 0].any()
        trimtab.activate(model, None)
        assert not task.ask(model, batch, tokenizer)[..., 0].any()


def test_a_chat_is_judged_by_its_last_answer(stories: str) -> None:
    task = Preference(form="chat")
    tokenizer = hf.AutoTokenizer.from_pretrained(stories)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    asked = [{"role": "user", "content": "Who wrote it?"}]
    chats = {
        "chosen": [[*asked, {"role": "assistant", "content": "Ada wrote it"}]],
        "rejected": [[*asked, {"role": "assistant", "content": "I wonder"}]],
    }
    (example,) = task.encode(Dataset.from_dict(chats), tokenizer, [], 512).examples
    assert tokenizer.decode(example["chosen"][example["start"] :]).strip() == "Ada wrote it"
    assert tokenizer.decode(example["rejected"][example["start"] :]).strip() == "I wonder"


def test_where_answers_begin() -> None:
    assert common([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common([1, 2], [1, 2, 3]) == 2
    assert common([], [1]) == 0


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_preferences_are_learned(
    quick: Callable[..., Any], given: Callable[..., Path], stories: str, kind: str
) -> None:
    """Rewards are learned, and read again from what was saved."""
    data = given(**built())
    config = quick(
        task="preference", model=stories, data=data, task_arg={"kind": kind}, max_steps=16,
        eval_every=8, batch_size=8, lr=5e-3,
    )  # fmt: skip
    metrics = tune(config, quiet=True)
    assert metrics["gain_over"]["base"]["low"] > 0
    assert metrics["metrics"]["reward_margin"]["adapted"] > 0
    if kind == "dpo":
        assert metrics["baselines"]["base"]["value"] == 0.5
        assert metrics["metrics"]["reward_margin"]["base"] == 0
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    told = predict(config.out, str(data / "test.jsonl"))
    assert set(told[0]) == {"prompt", "chosen", "rejected", "reward", "rejected_reward", "margin"}
    better = sum(row["margin"] > 0 for row in told) / len(told)
    assert better == pytest.approx(metrics["test"]["value"])
    alone = data.parent / "answers.csv"
    alone.write_text('prompt,answer\n"Speak, ",speak\n', "utf8")
    assert set(predict(config.out, str(alone))[0]) == {"prompt", "chosen", "reward"}


def built() -> dict[str, list[dict[str, str]]]:
    """Lines of Shakespeare are preferred to the same in capitals."""
    text = shared("data", "tinyshakespeare", "input.txt").read_text("utf8")
    lines = [line.split() for line in text.splitlines() if 30 < len(line) < 60][:200]
    rows = [
        {"prompt": " ".join(line[:3]), "chosen": f" {rest}", "rejected": f" {rest.upper()}"}
        for line in lines
        if (rest := " ".join(line[3:]))
    ]
    return {"train": rows[:100], "validation": rows[100:120], "test": rows[120:160]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "line 2: the chosen and the rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "line 2: empty rejected"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "line 2: missing chosen"),
        ({"prompt": "a", "chosen": ["b"], "rejected": "c"}, "line 2: the chosen is a list"),
    ],
)
def test_pairs_that_are_none(
    quick: Callable[..., Any], given: Callable[..., Path], row: dict[str, Any], message: str
) -> None:
    data = given(train=[PAIRS[0], row])
    with pytest.raises(InputError, match=f"train.jsonl, {message}"):
        read_data(quick(task="preference", model="minilm", data=data))


def test_what_is_no_preference(quick: Callable[..., Any], given: Callable[..., Path]) -> None:
    data = given(train=[{"prompt": "a", "answer": "b"}])
    with pytest.raises(InputError, match="line 1: there is no rejected answer"):
        read_data(quick(task="preference", model="minilm", data=data))
    for option in ({"kind": "ppo"}, {"form": "messages"}, {"beta": 0}, {"beta": True}):
        with pytest.raises(InputError, match="preference: "):
            lookup("preference", option)
    with pytest.raises(InputError, match="has no chat template"):
        lookup("preference", {"form": "chat"}).processor("minilm")
