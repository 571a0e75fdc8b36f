"""The training itself: the Trainer's settings, its callbacks, and going on from a checkpoint."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.evaluate.judge import judge
from trimtab.tasks.task import Encoded
from trimtab.tune import demands, features, hardware
from trimtab.tune.choices import loss
from trimtab.tune.config import Config
from trimtab.tune.folder import Run
from trimtab.tune.replicas import Replicas
from trimtab.tune.session import Session, read_stream

_SAVES = 10  # checkpoints in a run, unless the user says otherwise
_LOGS = 50


def train(
    session: Session,
    adapter: Adapter,
    run: Run,
    encoded: Mapping[str, Encoded],
    held_out: Any,
    cached: Mapping[str, features.Features] | None,
    quiet: bool,
) -> tuple[Any, int]:
    """Train to the end, from the last checkpoint if there is one; the adapter is then that of the
    best validation metric, on the rows `held_out`. Returns the run's memory and the number of
    tokens trained on.
    """
    from transformers import PrinterCallback

    from trimtab.tune import progress, trainer
    from trimtab.tune.schedule import Schedule

    checkpoint = trainer.last_checkpoint(run.checkpoints)
    memory = trainer.recall(checkpoint)
    tokens = trainer.tokens_at_end(checkpoint, memory, session.config.patience)
    if tokens is not None:
        trainer.restore(adapter, trainer.best_folder(run.checkpoints))
        return memory, tokens
    if checkpoint is not None:
        session.phases.say(f"going on from step {checkpoint.name.rpartition('-')[2]}")
    model, data, collate = _material(session, encoded, cached)
    watched = session.task.watched
    bar = progress.Bar(watched, quiet)
    best = trainer.Best(
        memory,
        adapter,
        watched,
        session.config.patience,
        higher=session.task.more_is_better,
        last=demands.pruned(session.config),
    )
    whole = through_model(session, cached)
    task = session.task if whole else features.OverFeatures(session.task)
    tokens_count = session.task.counts_tokens and whole
    workers = (session.config.workers or 0) if whole else 0
    arguments = _arguments(
        session.config, run, len(encoded["train"].examples), tokens_count, workers
    )
    schedules = [Schedule()] if whole else []
    replicas = _replicas(session, model, cached)
    loop = trainer.AdapterTrainer(
        model,
        arguments,
        adapter=adapter,
        task=task,
        memory=memory,
        distiller=session.distiller,
        replicas=replicas,
        data_collator=collate,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        judge=_judge(session, encoded["validation"], data["validation"], held_out, collate, task),
        callbacks=[best, *schedules, progress.Log(run.log), bar],
    )
    loop.remove_callback(PrinterCallback)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the Trainer's own deprecations
            loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.close()
        if replicas is not None:
            replicas.close()
    trainer.restore(adapter, trainer.best_folder(run.checkpoints))
    return memory, int(loop.state.num_input_tokens_seen)


def through_model(session: Session, cached: object) -> bool:
    """Whether training runs through the whole model: head only runs on cached features instead."""
    return session.config.method != "head" or cached is None


def _replicas(session: Session, model: nn.Module, cached: object) -> Replicas | None:
    count = session.config.replicas or 1
    if count == 1 or not through_model(session, cached):
        return None
    return Replicas(model, count, loss(session))


def _material(
    session: Session,
    encoded: Mapping[str, Encoded],
    cached: Mapping[str, features.Features] | None,
) -> tuple[nn.Module, dict[str, Any], Callable[..., Any]]:
    """The model, its examples and their collator."""
    if through_model(session, cached):
        data: dict[str, Any] = {k: v.examples for k, v in encoded.items()}
        if session.config.stream:
            data["train"] = _stream(session)
        elif session.augmented is not None:
            data["train"] = session.augmented
        return session.model, data, session.collate
    assert cached is not None
    head = features.head_of(session.model)
    assert head is not None
    data = {split: one.dataset() for split, one in cached.items()}
    return features.FeatureHead(head), data, features.collate


def _stream(session: Session) -> Any:
    from trimtab.tune.streaming import Stream

    config = session.config
    size = config.batch_size * config.gradient_accumulation
    encode = functools.partial(session.encode, training=True)
    return Stream(read_stream(config)[1], encode, size, config.seed)


def _judge(
    session: Session,
    encoded: Encoded,
    examples: Any,
    rows: Any,
    collate: Callable[..., Any],
    task: Any,
) -> Callable[[nn.Module], dict[str, float]]:
    """What the Trainer calls evaluation: the loss, and the metric unless answers are dear."""
    found = Encoded(examples, encoded.order)
    return lambda model: judge(session, model, found, rows, collate, task)


def steps(config: Config, examples: int) -> tuple[int, int]:
    """Optimizer steps in an epoch, and in the run."""
    epoch = math.ceil(examples / (config.batch_size * config.gradient_accumulation))
    return epoch, config.max_steps or math.ceil(config.epochs * epoch)


def _arguments(config: Config, run: Run, examples: int, tokens: bool, workers: int) -> Any:
    from transformers import TrainingArguments

    epoch, total = steps(config, examples)
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.lr or 0.0,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.schedule,
        warmup_steps=math.ceil(config.warmup * total),
        optim="adamw_torch_fused",
        bf16=config.autocast,
        use_cpu=hardware.device().type == "cpu",
        seed=config.seed,
        eval_strategy="steps",
        eval_steps=config.eval_every or min(epoch, total),
        save_strategy="steps",
        save_steps=config.save_every or max(1, total // _SAVES),
        save_total_limit=2,
        logging_steps=max(1, total // _LOGS),
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding" if tokens else "no",
        report_to=config.report_to or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        disable_tqdm=True,
        label_names=["labels"],
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # nn.DataParallel would copy hosts without bases
    return arguments


def check_trackers(config: Config) -> None:
    """Whether every tracker of `--report-to` is installed."""
    from transformers.integrations import get_available_reporting_integrations

    available = sorted(get_available_reporting_integrations())
    for name in config.report_to:
        if name not in available:
            raise InputError(
                f"--report-to {name}: no such tracker is installed; installed: "
                f"{', '.join(available) or 'none'}"
            )
