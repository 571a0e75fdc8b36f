"""`tune`: from a configuration to a run's folder with an adapter, its proof and its report."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab import adapt, store
from trimtab.choose import choose
from trimtab.core import registry
from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.core.heads import heads
from trimtab.data import Splits
from trimtab.evaluate.predict import on
from trimtab.init import fisher
from trimtab.kernels.cpu import keep_memory
from trimtab.kernels.rowwise import rowwise
from trimtab.methods.whole import Whole
from trimtab.tasks.task import Encoded, Outputs
from trimtab.tune import (
    augmenting,
    combining,
    demands,
    features,
    guards,
    hardware,
    planning,
    products,
    results,
    starting,
    teacher,
)
from trimtab.tune.choices import choose_attention, choose_replicas, choose_workers, loss
from trimtab.tune.config import Config
from trimtab.tune.folder import Run
from trimtab.tune.phases import Phases
from trimtab.tune.session import (
    Session,
    check_digest,
    digest,
    fewer,
    narrow,
    note_truncation,
    open_session,
    read_data,
    read_whole,
    settle_length,
)
from trimtab.tune.training import check_trackers, train

SPLITS = ("train", "validation", "test")
_CHOOSING = 256  # examples from which the places of a sparse method are chosen


@dataclass
class Work:
    """A run in progress."""

    run: Run
    session: Session
    splits: Splits
    encoded: dict[str, Encoded]
    outputs: dict[str, dict[str, Outputs]]  # row of the table -> split -> what the model gave
    cached: dict[str, features.Features] | None = None  # where a head is trained on these alone
    probed: nn.Module | None = None  # the head trained alone
    probe_seconds: float = 0.0
    started_from_probe: bool = False


def tune(config: Config, *, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Adapt a model as the configuration says; returns what `metrics.json` holds.

    With `resume`, go on from the last whole checkpoint in `config.out`, whose saved configuration
    counts; the result is the same as that of a run that was never stopped. A run that came to its
    end is left as it is.
    """
    began = time.perf_counter()
    run, phases = Run(Path(config.out)), Phases(quiet)
    keep_memory()
    if resume:
        config = run.config()
        if run.over:
            if Path(config.data).exists():  # data that has gone is missed by nobody
                _check_data(config, read_data(config))
            return run.metrics()
        config.out = str(run.path)  # the folder may have been moved
        if not any(run.checkpoints.glob("checkpoint-*")):
            phases.say("there is no checkpoint yet: from the beginning")
    else:
        run.create(config)
    try:
        if config.method == "auto":
            config = planning.auto(config, phases)
        work, adapter = _ready(run, config, phases)
    except InputError:
        if not resume:
            run.abandon()
        raise
    held_out = work.splits.validation
    memory, tokens = train(work.session, adapter, run, work.encoded, held_out, work.cached, quiet)
    _measure(work, "adapted")
    store.save(work.session.model, run.adapter, name=combining.composition(adapter))
    with phases.doing("writing the report"):
        return results.conclude(work, memory, tokens, time.perf_counter() - began)


def _ready(run: Run, config: Config, phases: Phases) -> tuple[Work, Adapter]:
    """All that comes before training. Wrong input shows here, and then leaves no folder behind."""
    demands.refuse(config)
    products.refuse(config)
    check_trackers(config)
    work = _prepare(run, config, phases)
    _baselines(work)
    return work, _attach(work)


def _prepare(run: Run, config: Config, phases: Phases) -> Work:
    with phases.doing(f"reading {config.data}"):
        whole = read_whole(config)
    labels = _labels(config, whole)  # those of few rows would not be all
    splits = fewer(config, whole)
    with phases.doing(f"opening {config.model}"):
        session = open_session(config, labels)
    session.phases = phases
    session.notes.extend(splits.notes)
    combining.gather(session)
    _refuse_target(session)
    session.distiller = teacher.distiller(session)
    with phases.doing("counting tokens"):
        settle_length(session, splits.train)
    starting.settle(session, splits.train)
    starting.check(session, trained_whole(session))
    if config.lr is None:
        config.lr = registry.lookup(config.method).learning_rate
    config.labels = labels
    if demands.pruned(config) and config.patience is not None:
        config.patience = None
        session.notes.append(
            f"{config.method} changes until the last step: the adapter kept is the last one, not "
            "that of the best evaluation, and --patience does not apply"
        )
    _check_data(config, splits)
    config.digests = {split: digest(getattr(splits, split)) for split in SPLITS}
    each = phases.track(SPLITS, "encoding the texts")
    encoded = {
        split: session.encode(getattr(splits, split), training=split == "train") for split in each
    }
    for split, one in encoded.items():
        note_truncation(session, split, one)
    if config.augment:
        _augment(session, splits.train, encoded["train"])
    narrow(session, encoded["train"])
    return Work(run, session, splits, encoded, {})


def _augment(session: Session, rows: Any, encoded: Encoded) -> None:
    names = ", ".join(session.config.augment)
    session.augmented = augmenting.Augmented(session, rows, encoded.examples, encoded.order)
    session.notes.append(
        f"train is changed anew in each epoch: {names}, each in one example in two. What is "
        "measured, and the head that is trained alone, know the examples as they are"
    )


def _refuse_target(session: Session) -> None:
    """A target that names nothing is told before anything is computed; so is a plan of another
    base."""
    config, method = session.config, session.config.build_method()
    if (plan := config.build_plan()) is not None:
        plan.require(session.model, tuple(session.fresh), force=config.force_plan)
        session.notes.append(planning.told(plan))
    if not config.selects:
        target = None if isinstance(method, dict) else config.target
        choose(session.model, method, target, trained_whole(session))


def _check_data(config: Config, splits: Splits) -> None:
    """The data of a run that goes on are those that it began with."""
    for split in SPLITS:
        check_digest(config, split, getattr(splits, split))


def _labels(config: Config, splits: Splits) -> list[str]:
    task = config.build_task()
    labels = task.order(config.model, task.labels(splits.train))
    if config.labels is not None and config.labels != labels:
        raise InputError(
            f"the data's labels {labels} are not those of the run ({config.labels}): the data "
            "changed"
        )
    return labels


def _baselines(work: Work) -> None:
    """What the base is worth as it was loaded, and with nothing but its head trained."""
    session, began = work.session, time.perf_counter()
    wanted = session.config.head_only and session.task.one_vector
    if session.first is not None:  # one that goes on starts where it began, and finds the same
        with contextlib.suppress(ValueError):  # a composite may hold parts that know only one
            hardware.take_attention(session.model, session.first)
    found = _features(work, SPLITS) if wanted else None
    if found is None:
        why = "the head takes more than one vector an example"
        why = why if session.config.head_only else "--no-head-only"
        at_random = ": a new head began at random" if session.fresh else ""
        session.notes.append(f"head only was not measured ({why}){at_random}")
        return
    head = features.head_of(session.model)
    assert head is not None
    told = functools.partial(
        session.phases.track,
        what="training the head alone",
        total=features.EPOCHS * len(features.RATES),
    )
    train, held_out = found["train"], found["validation"]
    work.probed = features.probe(head, train, held_out, session.task, session.config.seed, told)
    work.probe_seconds = time.perf_counter() - began
    _tell_baselines(work, found)
    vectors = {split: one for split, one in found.items() if isinstance(one, features.Features)}
    work.cached = vectors or None


def _tell_baselines(work: Work, found: Mapping[str, features.Known]) -> None:
    """The table's first rows, from what the base makes of what was held out."""
    assert work.probed is not None
    held_out = [found[split] for split in SPLITS[1:]]
    _keep(work, "base", [split.outputs for split in held_out])
    _keep(work, "head", [features.apply(work.probed, split) for split in held_out])


def _features(work: Work, splits: Sequence[str]) -> dict[str, features.Known] | None:
    """What the base makes of these splits; None where the head takes more than a vector a text."""
    session, found = work.session, {}
    for split in splits:
        one = features.extract(
            session.model,
            work.encoded[split].examples,
            session.collate,
            batch_size=session.task.eval_batch,
            autocast=session.config.autocast,
            follow=functools.partial(session.phases.track, what=f"running the base over {split}"),
        )
        if one is None:
            return None
        found[split] = one
    return found


def _measure(work: Work, row: str) -> None:
    """What the model gives as it is now, on what was held out: a row of the table."""
    work.outputs[row] = {
        split: work.session.outputs(work.encoded[split], f"evaluating {row} on {split}")
        for split in SPLITS[1:]
    }


def _measure_baselines(work: Work) -> None:
    """The same rows again, as the model computes now."""
    found = None if work.probed is None else _features(work, SPLITS[1:])
    if found is None:
        _measure(work, "base")
    else:
        _tell_baselines(work, found)


def _keep(work: Work, row: str, outputs: Sequence[np.ndarray]) -> None:
    work.outputs[row] = {
        split: work.encoded[split].restore(one)
        for split, one in zip(SPLITS[1:], outputs, strict=True)
    }


def _attach(work: Work) -> Adapter:
    """Put the adapter on, and pin what measurement chooses."""
    import transformers

    session, config = work.session, work.session.config
    transformers.set_seed(config.seed)
    method = config.build_method()
    whole = trained_whole(session)
    adapter = adapt.attach(
        session.model,
        method,
        None if isinstance(method, dict) else config.target,
        train=whole,
    )
    session.notes.extend(guards.warnings(session, adapter, work.splits.train))
    if config.probe_first and work.probed is not None and config.method != "head":
        start_from_probe(adapter, features.place_of(session.model), work.probed)
        work.started_from_probe = True
    starting.begin(session, adapter)
    if any(method.unready() for method in demands.methods(config)):
        _choose_places(work)
    if config.gradient_checkpointing:
        _checkpoint(session.model, config)
    rowwise(session.model)
    batch = _part(work, 0.5)
    with session.phases.doing("measuring attention"):
        choose_attention(session, batch, _step(session, adapter, batch))
    if config.attention != session.first or "base" not in work.outputs:  # as with what stays
        adapt.activate(session.model, None)
        _measure_baselines(work)
        adapt.activate(session.model, adapter.name)
    products.choose(session, adapter, batch, _part(work, 0.25))
    with session.phases.doing("measuring parts of a batch side by side"):
        choose_replicas(session, batch)
    choose_workers(session, _examples(work, 0.5), _step(session, adapter, batch))
    work.run.write_config(config)
    return adapter


def _checkpoint(model: Any, config: Config) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:
        raise InputError(
            f"--gradient-checkpointing: {config.model!r} is a {type(model).__name__}, which cannot "
            "be told to compute its activations again; leave the flag out"
        )
    enable({"use_reentrant": False})


def _choose_places(work: Work) -> None:
    """The places of a sparse method's values, from the first examples of a shuffle that follows
    from the seed alone: a run that goes on finds the same ones."""
    session, examples = work.session, work.encoded["train"].examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [_batch(session, [examples[i]]) for i in order[:_CHOOSING]]
    followed = session.phases.track(chosen, "choosing the places of values")
    fisher(session.model, followed, loss=loss(session), examples=_CHOOSING)


def _batch(session: Session, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
    """A batch where the model is."""
    return on(session.collate(examples), next(session.model.parameters()).device)


@torch.no_grad()
def start_from_probe(adapter: Adapter, head: str, probed: nn.Module) -> None:
    """A new head starts where training it alone has brought it, rather than at random: the adapter
    then need not move the features to suit a random head (Kumar et al. 2022, arXiv:2202.10054).
    """
    own = adapter.tensors()
    for name, tensor in probed.state_dict().items():
        module, _, leaf = f"{head}.{name}".lstrip(".").rpartition(".")
        for key in (f"{module}.{leaf}", f"{module}.{Whole.name}.{leaf}"):
            if key in own:
                own[key].copy_(tensor)


def trained_whole(session: Session) -> list[str]:
    """The modules to train whole: those asked for, and those that no checkpoint filled."""
    if session.config.selects:
        return list(session.config.train or [])
    holding = {name.rpartition(".")[0] for name in session.fresh}
    tops = [
        top for top in heads(session.model) if any(f"{h}.".startswith(f"{top}.") for h in holding)
    ]
    rest = [h for h in sorted(holding) if not any(f"{h}.".startswith(f"{top}.") for top in tops)]
    whole = list(dict.fromkeys([*(session.config.train or []), *tops, *rest]))
    session.config.train = whole
    return whole


def _part(work: Work, share: float) -> dict[str, torch.Tensor]:
    """A batch from this place of the training data, which is in order of length."""
    return _batch(work.session, _examples(work, share))


def _examples(work: Work, share: float) -> Sequence[Any]:
    examples, size = work.encoded["train"].examples, work.session.config.batch_size
    return examples[max(0, int(share * len(examples)) - size // 2) :][:size]


def _step(session: Session, adapter: Adapter, batch: dict[str, torch.Tensor]) -> Any:
    """One training step, without an update: what is measured."""

    def step() -> None:
        loss(session)(session.model.train(), batch).backward()  # type: ignore[no-untyped-call]
        for parameter in adapter.parameters():
            parameter.grad = None

    return step
