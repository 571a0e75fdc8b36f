"""Data, tokenizer and model of a run, made ready: for training, evaluation and prediction alike."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.core import registry
from trimtab.core.errors import InputError
from trimtab.data import Splits, load
from trimtab.data.columns import BESIDE
from trimtab.data.rows import Ask
from trimtab.data.streaming import Pieces, load_stream
from trimtab.evaluate.predict import on, outputs, precision
from trimtab.quant import quantise
from trimtab.tasks import Task
from trimtab.tasks.task import UNLIMITED, Encoded, Outputs, logits_of
from trimtab.tune import augmenting, demands, hardware, positions
from trimtab.tune.config import Config
from trimtab.tune.phases import QUIET, Phases

_LONG = 0.05  # share of truncated texts from which a warning is due


@dataclass
class Session:
    """Everything a run works on. `fresh` names the parameters that no checkpoint filled (a new
    head); `first` is the attention that the model has before one is chosen by measurement;
    `probed` is the head that a finished run trained alone, `augmented` the training examples that
    are changed anew each time, where they are.
    """

    config: Config
    task: Task
    labels: list[str]
    processor: Any
    model: Any
    fresh: list[str]
    first: str | None = None
    notes: list[str] = field(default_factory=list)
    distiller: Any = None
    probed: Any = None
    augmented: Any = None
    phases: Phases = QUIET

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return self.task.collate(examples, self.processor)

    def made(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of these examples, as training makes it."""
        return self.collate(self.augmented.like(examples) if self.augmented else examples)

    def encode(self, rows: Any, *, labelled: bool = True, training: bool = False) -> Encoded:
        encode = self.task.encode_for_training if training else self.task.encode
        labels = self.labels if labelled else None
        return encode(rows, self.processor, labels, self.config.max_length or UNLIMITED)

    def outputs(self, encoded: Encoded, what: str = "running the model") -> Outputs:
        """The model's outputs in the data's order, computed as every reported number is; `what` is
        said of it meanwhile."""
        values = outputs(
            self.model,
            encoded.examples,
            self.collate,
            functools.partial(self.task.ask, processor=self.processor),
            batch_size=self.task.eval_batch,
            autocast=self.config.autocast,
            follow=functools.partial(self.phases.track, what=what),
        )
        return encoded.restore(values)

    def answers(self, outputs: Outputs, rows: Any) -> list[Any]:
        """One for each row, as the metrics take them."""
        return self.task.answers(outputs, rows, self.labels, self.processor)

    def references(self, rows: Any) -> list[Any]:
        return self.task.references(rows, self.labels)


def read_data(config: Config, beside: Sequence[str] = ()) -> Splits:
    """The run's data, of train no more than `train_rows`; see `read_whole`."""
    return fewer(config, read_whole(config, beside))


def fewer(config: Config, splits: Splits) -> Splits:
    """With the first `train_rows` of a shuffle of train that follows from the run's seed: fewer of
    them are among more of them."""
    rows, n = splits.train, config.train_rows
    if n is not None and config.stream:
        raise InputError("--train-rows shuffles all of train, which --stream never has at once")
    if n is None or n >= len(rows):
        return splits
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed))
    note = f"Trained on {n:,} of the {len(rows):,} rows of train, drawn with seed {config.seed}."
    return replace(splits, train=rows.select(order[:n].tolist()), notes=(*splits.notes, note))


def read_whole(config: Config, beside: Sequence[str] = ()) -> Splits:
    """The embedded demo set, or a file, folder or hub name, with the columns `beside` those of the
    task. Of a stream, its first piece stands for train."""
    if beside and (config.stream or config.data == "docstrings"):
        raise InputError(
            f"columns beside those of the task ({', '.join(beside)}) are read of files: say which "
            "with --data"
        )
    if config.stream:
        return read_stream(config)[0]
    if config.data == "docstrings":
        from trimtab.data.docstrings import docstrings

        return docstrings(_data_seed(config))
    return load(config.data, **_reading(config), tidied=config.clean, beside=beside)


def read_stream(config: Config) -> tuple[Splits, Pieces]:
    """The run's data, and what gives all of train, in pieces."""
    if config.max_steps is None:
        raise InputError("--stream needs --max-steps: how long the data are is not known")
    if config.clean:
        raise InputError("--clean looks at all of train at once, which --stream never has")
    if config.augment:
        raise InputError("--augment draws by the row's place in train, which --stream never has")
    if config.method == "head":
        raise InputError("--method head trains on features of all of train: leave out --stream")
    return load_stream(config.data, **_reading(config))


def _reading(config: Config) -> dict[str, Any]:
    task = config.build_task()
    return {
        "columns": task.columns,
        "names": column_names(config),
        "seed": _data_seed(config),
        "skip_bad_rows": config.skip_bad_rows,
        "fault": faults(task, config.model),
        "arrange": functools.partial(task.arranged, model=config.model, new=False),
    }


def faults(task: Task, model: str, *, labelled: bool = True) -> Ask:
    """What tells of a row why a run cannot use it, if it cannot."""

    def ask(row: Mapping[str, Any]) -> str | None:
        return (task.fault(row) if labelled else None) or task.unfit(row, model)

    return ask


def _data_seed(config: Config) -> int:
    """Of splits that are made: one for runs of several seeds that are compared on the same rows."""
    return config.seed if config.data_seed is None else config.data_seed


def digest(rows: Any) -> str:
    """A short name for exactly these rows in this order."""
    columns = [list(rows[name]) for name in sorted(rows.column_names)]
    content = json.dumps(columns, ensure_ascii=True, default=_named).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _named(cell: Any) -> str:
    """Of bytes in a cell, such as a picture's."""
    return hashlib.sha256(cell).hexdigest() if isinstance(cell, bytes) else repr(cell)


def check_digest(config: Config, split: str, rows: Any) -> None:
    """Refuse data that is no longer what the run was made on: what was trained on might now be
    held out."""
    others = [name for name in rows.column_names if name.startswith(BESIDE)]
    found = digest(rows.remove_columns(others))
    if config.digests.get(split, found) != found:
        raise InputError(
            f"the {split} data read from {config.data!r} is not what this run was made on: it has "
            "changed since. Put it back, or evaluate on new data with --data"
        )


def column_names(config: Config) -> dict[str, str]:
    chosen = {"text": config.text_column, "label": config.label_column}
    return {**config.columns, **{name: one for name, one in chosen.items() if one is not None}}


def open_session(config: Config, labels: Sequence[str]) -> Session:
    """Tokenizer and base model, in the dtype and with the attention that the configuration says.

    Without pinned choices (`auto`), the dtype is chosen here by measurement, and written into the
    configuration; attention is chosen later, when the adapter is on.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    task = config.build_task()
    processor = task.processor(config.model)
    _settle_dtype(config, task)
    if config.base_dropout is None:
        config.base_dropout = registry.lookup(config.method).base_dropout
    transformers.set_seed(config.seed)
    weights = torch.bfloat16 if config.dtype == "bfloat16" and not config.selects else torch.float32
    model, fresh = task.model(config.model, labels, processor, weights, config.base_dropout)
    model.to(hardware.device()).eval()
    if (form := registry.lookup(config.method).base) is not None:
        quantise(model, form)
    loaded = getattr(getattr(model, "config", None), "_attn_implementation", None)
    measured = config.attention == "auto" or "attention_ms" in config.measured
    _set_attention(model, config)
    first = loaded if measured else config.attention
    return Session(config, task, list(labels), processor, model, fresh, first)


def _settle_dtype(config: Config, task: Task) -> None:
    if config.dtype == "auto" and len(task.dtypes) == 1:
        config.dtype = task.dtypes[0]  # type: ignore[assignment]
    elif config.dtype == "auto":
        dtype, took = hardware.choose_dtype(task.width(config.model))
        config.dtype = dtype  # type: ignore[assignment]
        config.measured = {**config.measured, "dtype_ms": took}
    elif config.dtype not in task.dtypes:
        raise InputError(
            f"--dtype {config.dtype}: {task.name} is computed in {' or '.join(task.dtypes)} alone"
        )


def _set_attention(model: Any, config: Config) -> None:
    if config.attention == "auto":
        return
    try:
        hardware.take_attention(model, config.attention)
    except (ValueError, ImportError, KeyError) as error:
        raise InputError(f"--attention {config.attention}: {str(error).splitlines()[0]}") from None


def settle_length(session: Session, rows: Any) -> None:
    """The maximum length in tokens: the longest text of the training data, within the model's
    limit.
    """
    config = session.config
    taken = demands.positions(config)
    limit = session.task.limit(session.model, session.processor) - taken
    if config.max_length is not None and config.max_length > limit:
        left = f", of which {config.method} takes {taken}" if taken else ""
        raise InputError(
            f"--max-length {config.max_length} is beyond the {limit + taken} positions of "
            f"{config.model!r}{left}"
        )
    if config.max_length is None:
        lengths = session.task.lengths(rows, session.processor)
        room = augmenting.room(config.augment)
        longest = -8 * int(-max(lengths) * room // 8) if lengths else limit
        shortest = int(min(limit, longest))
        config.max_length = shortest if shortest < UNLIMITED // 2 else None  # of pictures, say


def narrow(session: Session, encoded: Encoded) -> None:
    """Leave out what the head never reads, if no law looks beyond a position, and if that changes
    no output on the shortest, middling and longest examples; what was found is pinned."""
    n = len(encoded.examples)
    if not session.task.one_vector:
        session.config.first_position = False
        return
    picked = [
        encoded.examples[i] for i in sorted({*range(min(4, n)), n // 2, max(0, n - 4), n - 1})
    ]
    device = next(session.model.parameters()).device
    inputs = on(session.collate(picked), device)
    for key in ("labels", "weights"):
        inputs.pop(key, None)

    def run() -> Tensor:
        with precision(device, session.config.autocast):
            return logits_of(session.model(**inputs))

    if not demands.by_position(session.config):
        session.config.first_position = False
    elif session.config.first_position is None:
        session.config.first_position = positions.try_narrow(session.model, run)
    elif session.config.first_position:
        positions.narrow(session.model)


def note_truncation(session: Session, split: str, encoded: Encoded) -> None:
    if encoded.truncated:
        share = encoded.truncated / len(encoded.examples)
        warning = "; a higher --max-length would keep them whole" if share > _LONG else ""
        count, limit = encoded.truncated, session.config.max_length
        which = f"1 text ({share:.1%}) is" if count == 1 else f"{count:,} texts ({share:.1%}) are"
        session.notes.append(f"{split}: {which} longer than {limit} tokens and cut{warning}")
