"""What a base can do untrained, shown examples: prompts, or neighbours; and how it may transfer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.evaluate import neighbours, prompting, vectors
from trimtab.evaluate.drawn import drawn
from trimtab.evaluate.metrics import METRICS, interval
from trimtab.evaluate.predict import on
from trimtab.evaluate.transferability import logme
from trimtab.store.files import write_json
from trimtab.tasks import models
from trimtab.tasks.task import UNLIMITED
from trimtab.tune import answers as recorded
from trimtab.tune import hardware
from trimtab.tune.config import Config, parse
from trimtab.tune.run import SPLITS
from trimtab.tune.session import Session, fewer, open_session, read_whole

METRICS_FILE, SCORE = "metrics.json", "score.json"
_ROUNDS = 11
_TRIED = 200  # validation rows, by which an order is chosen
_SCORED = 2000  # training vectors, for the score


def few_shot(folder: str, config: dict[str, Any], shots: int, orders: int) -> None:
    """Writes `metrics.json` and `answers.json` of the base, shown examples; where it cannot be,
    why."""
    began, run = time.perf_counter(), parse(config, "trimtab compare")
    task = run.build_task()
    why = prompting.refusal(task, run.model)
    if why is None:
        by_words = task.name == "text-classification"
        found = (_labels if by_words else _generated)(run, shots, orders)
    else:
        found = _neighbours(run, why)
    answers, references = found.pop("answers", None), found.pop("references", None)
    out = Path(folder)
    if answers is not None:
        recorded.write(out, {"adapted": answers}, references)
    spent = {"seconds": round(time.perf_counter() - began, 3)}
    spent["peak_memory_bytes"] = hardware.peak_memory()
    write_json(out / METRICS_FILE, {**found, **spent, "seed": run.seed})


def score(folder: str, config: dict[str, Any]) -> None:
    """Writes `score.json`: LogME of the base's features of train, or why there is none."""
    session, splits = _opened(parse(config, "trimtab compare"))
    why = vectors.refusal(session)
    if why is not None:
        write_json(Path(folder) / SCORE, {"logme": None, "why": why})
        return
    train = drawn(splits.train, _SCORED, 0)  # the same rows for every base
    made = vectors.vectors(session, session.encode(train))
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(made.labels))[:_SCORED]
    labels = made.labels.numpy()[chosen]
    by = {name: logme(one.numpy()[chosen], labels) for name, one in made.by.items()}
    found = {"logme": max(by.values()), "by": by, "vectors": len(chosen)}
    write_json(Path(folder) / SCORE, found)


def _opened(config: Config) -> tuple[Session, Any]:
    whole = read_whole(config)
    task = config.build_task()
    config.labels = task.order(config.model, task.labels(whole.train))
    session = open_session(config, config.labels)
    config.max_length = min(task.limit(session.model, session.processor), UNLIMITED)
    return session, fewer(config, whole)


# Neighbours


def _neighbours(config: Config, not_prompted: str) -> dict[str, Any]:
    session, splits = _opened(config)
    why = vectors.refusal(session)
    if why is not None:
        return {"applicable": False, "why": f"{not_prompted}; {why}"}
    rows = {split: getattr(splits, split) for split in SPLITS}
    found = neighbours.search(session, rows)
    return {
        "applicable": True,
        "kind": "neighbours",
        "about": f"{found.k} nearest of {found.searched:,} vectors, {found.pooling}",
        "k": found.k,
        "pooling": found.pooling,
        "bytes": found.searched * found.width * 4,
        **_measured(session, splits.validation, splits.test, found.validation, found.test),
        **_one_prediction(session, splits.test),
    }


def _one_prediction(session: Session, rows: Any) -> dict[str, Any]:
    """Milliseconds and tokens of one: running the base is all but all of it."""
    encoded = session.encode(rows)
    example = encoded.examples[len(encoded.examples) // 2]
    batch = on(session.collate([example]), next(session.model.parameters()).device)

    @torch.no_grad()
    def call() -> object:
        return session.task.ask(session.model, batch, session.processor)

    return {
        "milliseconds": hardware.measure({"base": call}, rounds=_ROUNDS)["base"],
        "tokens": int(example["length"]),
    }


def _measured(
    session: Session, validation: Any, test: Any, held_out: Any, answers: Any
) -> dict[str, Any]:
    metric, seed = METRICS[session.task.metric], session.config.seed
    references, expected = session.references(test), session.references(validation)
    return {
        "metric": metric.name,
        "higher_is_better": metric.higher,
        "test": interval(metric, answers, references, seed=seed).as_dict(),
        "validation": interval(metric, held_out, expected, seed=seed).as_dict(),
        "answers": answers,
        "references": references,
    }


# Prompts


def _labels(config: Config, shots: int, orders: int) -> dict[str, Any]:
    """A classification, asked for in words: the label whose words are likeliest."""
    session, splits = _causal(config)
    labels = list(config.labels or [])
    limit = models.position_limit(session.model.config, session.processor)
    longest = max(splits.test["text"], key=len)
    told = prompting.fitting(session.processor, splits.train, shots, longest, limit)

    def ask(order: list[int], rows: Any) -> list[str]:
        asked = prompting.prompt(splits.train, order, labels)
        found = prompting.scores(session.model, session.processor, asked, list(rows["text"]), limit)
        return [labels[best] for best in found.argmax(-1).tolist()]

    found = _by_order(session, splits, ask, told, orders, config.seed)
    order = found.pop("order")
    asked = prompting.prompt(splits.train, order, labels)
    text = sorted(splits.test["text"], key=len)[len(splits.test) // 2]

    def call() -> object:
        return prompting.scores(session.model, session.processor, asked, [text], limit)

    tokens = len(session.processor(asked.of(text).text)["input_ids"])
    return {
        **found,
        "milliseconds": hardware.measure({"base": call}, rounds=_ROUNDS)["base"],
        "tokens": tokens * len(labels),  # each label is read behind the whole prompt
    }


def _causal(config: Config) -> tuple[Session, Any]:
    """The base as the language model that it is, without a head for the task."""
    whole, task = read_whole(config), config.build_task()
    config.labels = task.order(config.model, task.labels(whole.train))
    processor = task.processor(config.model)
    model, _ = models.load_model(
        "AutoModelForCausalLM", config.model, models.configuration(config.model), torch.float32,
        dropout=False,
    )  # fmt: skip
    model.to(hardware.device()).eval()
    session = Session(config, task, config.labels, processor, model, [])
    return session, fewer(config, whole)


def _generated(config: Config, shots: int, orders: int) -> dict[str, Any]:
    """Answers, generated or scored behind worked examples."""
    session, splits = _opened(config)
    plain = session.task
    lengths = plain.lengths(splits.train, session.processor)
    limit = min(plain.limit(session.model, session.processor), UNLIMITED)
    room = limit - max(plain.lengths(splits.test, session.processor), default=0)
    told = max(0, min(shots, room // max(1, sorted(lengths)[len(lengths) // 2])))

    def ask(order: list[int], rows: Any) -> list[Any]:
        session.task = prompting.shown_before(plain, splits.train, order)
        return session.answers(session.outputs(session.encode(rows)), rows)

    found = _by_order(session, splits, ask, told, orders, config.seed)
    session.task = prompting.shown_before(plain, splits.train, found.pop("order"))
    return {**found, **_one_prediction(session, splits.test)}


def _by_order(
    session: Session,
    splits: Any,
    ask: Callable[[list[int], Any], list[Any]],
    shots: int,
    orders: int,
    seed: int,
) -> dict[str, Any]:
    """Every order on test; the one that validation chooses is what is reported."""
    metric = METRICS[session.task.metric]
    few = drawn(splits.validation, _TRIED, seed)
    expected, sign = session.references(few), 1 if metric.higher else -1
    tried = []
    for order in prompting.orders(splits.train, shots, orders if shots > 1 else 1, seed):
        held_out, answers = ask(order, few), ask(order, splits.test)
        value = metric.value(held_out, expected)
        tried.append((sign * value, order, held_out, answers))
    _, order, held_out, answers = max(tried, key=lambda one: one[0])
    references = session.references(splits.test)
    every = [metric.value(one[3], references) for one in tried]
    return {
        "applicable": True,
        "kind": "prompting",
        "about": f"{shots} worked examples in each prompt, the best of {len(every)} orders",
        "shots": shots,
        "bytes": len(json.dumps(splits.train.select(order).to_list()).encode()),
        "by_order": [float(value) for value in every],
        "order": order,
        **_measured(session, few, splits.test, held_out, answers),
    }
