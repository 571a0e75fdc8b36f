"""A plan for a run: its data, its model, its loss, on a few batches."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from trimtab import adapt
from trimtab.core import registry
from trimtab.core.errors import InputError
from trimtab.core.heads import heads
from trimtab.core.method import Method, Selection
from trimtab.core.sparse import Sparse
from trimtab.core.walk import base_parameters, shapes
from trimtab.evaluate.predict import on, precision
from trimtab.plan import Budget, Candidate, Entry, Plan, candidates, entries, measure, parse
from trimtab.plan.candidates import at_rank, ranked
from trimtab.plan.estimators import estimator as named
from trimtab.plan.file import base
from trimtab.plan.propose import whole
from trimtab.tune import features, hardware
from trimtab.tune.config import Config
from trimtab.tune.phases import QUIET, Phases
from trimtab.tune.session import Session, open_session, read_data, read_whole, settle_length

ESTIMATOR, EXAMPLES, MOST = "nuclear", 512, 16
"""By what ranks are weighed, on how many examples, and the highest rank at a site."""

_WIDTH = 4  # bytes of a trained number: adapters train in fp32
_HEAD_PASSES, _HEAD_LR = 2, 1e-3  # of a new head that cannot be trained on cached features
_RANKS = (1, 8)  # at which steps are timed
_CORRECTIONS = 3


@dataclass(frozen=True)
class Request:
    """What a plan is to be made of. Several methods share the budget."""

    budget: Budget
    methods: tuple[str, ...] = ("lora",)
    estimator: str = ESTIMATOR
    examples: int = EXAMPLES
    most: int = MOST

    def build(self, config: Config) -> list[Method]:
        if config.method_arg and len(self.methods) > 1:
            raise InputError(
                f"--method-arg is of one method, and {', '.join(self.methods)} share the budget: "
                "write it into the plan, as with: {name: value}"
            )
        return [registry.build(name, config.method_arg) for name in self.methods]


@dataclass
class Ground:
    """The base with its head in place, and the batches that it is looked at on."""

    session: Session
    batches: list[dict[str, Any]]
    shown: Sequence[Any]
    rows: int

    @property
    def steps(self) -> int:
        """Of the run that is planned."""
        config = self.session.config
        rows = min(self.rows, config.train_rows or self.rows)
        a_step = config.batch_size * config.gradient_accumulation
        return config.max_steps or max(1, round(config.epochs * -(-rows // a_step)))


def propose(config: Config, request: Request, phases: Phases = QUIET) -> Plan:
    """Measure, and divide the budget.

    Raises:
        InputError: a budget that allows nothing, a method that is not divided among sites, and
            whatever a run refuses.
    """
    began, methods = time.perf_counter(), request.build(config)
    estimator = named(request.estimator)
    ground = prepare(config, request.examples, phases)
    model = ground.session.model
    total = _total(model)
    if any(isinstance(one, Selection) or _placed(one) for one in methods):
        if len(methods) > 1:
            raise InputError("layers, full and fish take the whole budget: plan one of them alone")
        found: tuple[Entry, ...] = (whole(model, methods[0], _parameters(ground, request, total)),)
    else:
        sites = candidates(model, methods, config.target, request.most)
        gains = weigh(ground, sites, estimator, phases)
        found = divide(ground, sites, gains, request, total)
    return describe(ground, found, request, total, time.perf_counter() - began)


def describe(
    ground: Ground, found: Sequence[Entry], request: Request, total: int, seconds: float
) -> Plan:
    """The plan with where it comes from."""
    config = ground.session.config
    return Plan(
        tuple(found),
        budget=request.budget.text,
        estimator=request.estimator,
        base=base(ground.session.model, tuple(ground.session.fresh)),
        model=config.model,
        task=config.task,
        data=config.data,
        parameters=sum(entry.cost or 0 for entry in found if entry.taken),
        of=total,
        batches=len(ground.batches),
        examples=len(ground.shown),
        seconds=round(seconds, 2),
    )


def _placed(method: Method) -> bool:
    return isinstance(method, Sparse) and not ranked(method)


def prepare(config: Config, examples: int, phases: Phases = QUIET) -> Ground:
    """Open the model, and put a new head where training it alone brings it: at a random head the
    base's gradient is as random."""
    config = config.model_copy(deep=True)
    if config.method == "auto":
        config.method = "lora"
    with phases.doing(f"reading {config.data}"):
        splits = read_whole(config)
    task = config.build_task()
    labels = task.order(config.model, task.labels(splits.train))
    with phases.doing(f"opening {config.model}"):
        session = open_session(config, labels)
    settle_length(session, splits.train)
    ground = _ground(session, splits.train, examples)
    if session.fresh:
        with phases.doing("training the new head alone"):
            _settle_head(ground)
    session.model.requires_grad_(False)  # as in the run: what is timed has no gradient of weights
    return ground


def ground_of(folder: str, config: Config, examples: int) -> Ground:
    """The adapted model of a finished run, on data that it was trained on."""
    from trimtab.evaluate.run import open_run

    return _ground(open_run(folder), read_data(config).train, examples)


def _ground(session: Session, rows: Any, examples: int) -> Ground:
    """Batches of a draw from train that follows from the seed, in order of length."""
    config = session.config
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(rows), generator=generator)[:examples].tolist()
    encoded = session.encode(rows.select(order))
    device = next(session.model.parameters()).device
    parts = [
        on(session.collate(encoded.examples[i : i + config.batch_size]), device)
        for i in range(0, len(encoded.examples), config.batch_size)
    ]
    return Ground(session, parts, encoded.examples, len(rows))


def loss_of(session: Session) -> Callable[[Any, Any], torch.Tensor]:
    """The task's loss of a model on a batch, and nothing that laws add to it."""

    def of(model: Any, batch: Any) -> torch.Tensor:
        with precision(next(model.parameters()).device, session.config.autocast):
            return session.task.loss(model, batch)[0]

    return of


def _settle_head(ground: Ground) -> None:
    session, examples = ground.session, ground.shown
    found = _features(session, examples) if session.task.one_vector else None
    if isinstance(found, features.Features):
        head = features.head_of(session.model)
        assert head is not None
        # Every eighth decides when to stop: lengths are in order, and all are among these.
        train, held_out = _part(found, lambda i: i % 8 != 0), _part(found, lambda i: i % 8 == 0)
        seed = session.config.seed
        probed = features.probe(head, train, held_out, session.task, seed)
        head.load_state_dict(probed.state_dict())
        return
    fresh = [p for name, p in base_parameters(session.model) if name in set(session.fresh)]
    session.model.requires_grad_(False)
    for parameter in fresh:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(fresh, lr=_HEAD_LR, weight_decay=0.0)
    for batch in (batch for _ in range(_HEAD_PASSES) for batch in ground.batches):
        loss_of(session)(session.model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def _features(session: Session, examples: Sequence[Any]) -> features.Known | None:
    return features.extract(
        session.model,
        examples,
        session.collate,
        batch_size=session.task.eval_batch,
        autocast=session.config.autocast,
    )


def _part(found: features.Features, wanted: Any) -> features.Features:
    at = [i for i in range(len(found.examples)) if wanted(i)]
    return features.Features(found.values[at], found.outputs[at], [found.examples[i] for i in at])


def weigh(
    ground: Ground, sites: Sequence[Candidate], estimator: Any, phases: Phases = QUIET
) -> list[torch.Tensor]:
    """What each rank is worth."""
    session = ground.session
    followed = phases.track(ground.batches, "measuring sensitivity")
    seed = session.config.seed
    return measure(session.model, sites, followed, estimator, loss=loss_of(session), seed=seed)


def divide(
    ground: Ground,
    sites: Sequence[Candidate],
    gains: Sequence[torch.Tensor],
    request: Request,
    total: int,
) -> tuple[Entry, ...]:
    """The budget among the candidates, in its own unit."""
    if request.budget.unit != "seconds":
        return entries(sites, gains, _parameters(ground, request, total))
    clock = _Clock(ground, sites)
    allowed = room = request.budget.amount / ground.steps - clock.bare
    if room <= 0:
        raise InputError(
            f"--budget {request.budget.text}: {ground.steps:,} steps of the base with its head "
            f"alone take {ground.steps * clock.bare:.1f} s here; give more, or fewer --max-steps"
        )
    for _ in range(_CORRECTIONS):
        found = entries(sites, gains, allowed, clock.costs)
        over = (clock.step(found) - clock.bare) / room
        if over <= 1:
            break
        allowed /= over  # sites share the way back: what one of them costs depends on the others
    return found


def _parameters(ground: Ground, request: Request, total: int) -> int:
    session = ground.session
    own = dict(base_parameters(session.model))
    head = sum(own[name].numel() for name in session.fresh)
    return request.budget.parameters(total, _WIDTH, head)


class _Clock:
    """Seconds of a training step: of the base with its head, and what sites and ranks add."""

    def __init__(self, ground: Ground, sites: Sequence[Candidate]) -> None:
        self.ground = ground
        self.batch = ground.batches[len(ground.batches) // 2]
        self.bare = self._timed()
        low, high = (self._with(_ranks(sites, rank)) for rank in _RANKS)
        rank = max((high - low) / (_RANKS[1] - _RANKS[0]), 0.0)
        sizes = [sum(one.shape) for one in sites]
        parts = [one / sum(sizes) for one in sizes]
        first = max(low - self.bare, 1e-9)
        self.costs = [
            (first * part, *[max(rank * part, 1e-12)] * (len(one.costs) - 1))
            for one, part in zip(sites, parts, strict=True)
        ]

    def step(self, found: Sequence[Entry]) -> float:
        """With what a plan takes."""
        return self._with(Plan(tuple(found)).methods())

    def _with(self, methods: Any) -> float:
        model = self.ground.session.model
        adapt.attach(model, methods, name="plan", train=_fresh_heads(self.ground.session))
        try:
            return self._timed()
        finally:
            adapt.detach(model, "plan")

    def _timed(self) -> float:
        session = self.ground.session
        with _training(session):

            def step() -> None:
                loss = loss_of(session)(session.model, self.batch)
                if loss.requires_grad:  # of a base without a new head nothing trains but the plan
                    loss.backward()

            return hardware.measure({"step": step}, rounds=3)["step"] / 1000


@contextmanager
def _training(session: Session) -> Iterator[None]:
    """With the new head training, whatever else does; afterwards it does not."""
    model = session.model.train()
    tops = [model.get_submodule(name) for name in _fresh_heads(session)]
    asked = [p for top in tops for p in top.parameters() if not p.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad_(True)
        yield
    finally:
        model.eval()
        for parameter in asked:
            parameter.requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = None


def _fresh_heads(session: Session) -> list[str]:
    """Those that no checkpoint filled, and that therefore train beside any plan."""
    return [
        top for top in heads(session.model) if any(n.startswith(f"{top}.") for n in session.fresh)
    ]


def _ranks(sites: Sequence[Candidate], rank: int) -> dict[str, list[Method]]:
    found: dict[str, list[Method]] = {}
    for one in sites:
        fitting = at_rank(one.method, min(rank, len(one.costs)))
        found.setdefault(one.site.name, []).append(fitting)
    return found


def _total(model: Any) -> int:
    packed = shapes(model)
    return sum(
        functools.reduce(int.__mul__, packed.get(name, tuple(p.shape)), 1)
        for name, p in base_parameters(model)
    )


def auto(config: Config, phases: Phases) -> Config:
    """The run of `--method auto`: with the plan that its budget allows."""
    assert config.budget is not None
    plan = propose(config, Request(parse(config.budget)), phases)
    phases.say(told(plan))
    return config.model_copy(update={"method": plan.method, "plan": plan.content()})


def told(plan: Plan) -> str:
    """A plan in a sentence."""
    ranks = sorted(entry.rank for entry in plan.taken if entry.rank)
    between = f", ranks {ranks[0]} to {ranks[-1]}" if ranks else ""
    names = ", ".join(dict.fromkeys(entry.method for entry in plan.taken))
    spent = f"{plan.parameters:,} parameters" if plan.parameters is not None else "a budget"
    took = f", measured in {plan.seconds:.1f} s" if plan.seconds is not None else ""
    return (
        f"plan: {names} at {len(plan.taken)} of {len(plan.entries)} sites{between}, {spent}{took}"
    )
