"""Time-series forecasting: what comes after the last values of a series.

    x̂ = f((x - μ) / σ) σ + μ,   μ, σ of the window x        L = mean of ((x̂ - y) / σ)²

Each window is standardised by itself, by the model's own scaler (Kim et al. 2022, reversible
instance normalisation); the loss is taken in the same units, so that large series weigh no more
than small ones. PatchTST (Nie et al. 2023, arXiv:2211.14730) and PatchTSMixer (Ekambaram et al.
2023, arXiv:2306.09364) see patches of one series at a time. A model that answers with a
distribution is trained by its likelihood, and answers with its mean.

    trimtab tune --task time-series-forecasting --model patchtst --data oil.csv --out runs/oil

of a table of values with a step a row, which is cut into windows, or of lines {"past": […],
"future": […]}. MASE compares with the naive forecast, which repeats the last `season`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.data.series import windows
from trimtab.data.table import Table
from trimtab.evaluate.metrics import naive_scale
from trimtab.tasks import models
from trimtab.tasks.pictures import hold_statistics
from trimtab.tasks.task import Batch, Encoded, Outputs, Task, refuse_unless_counts, shortest_first

if TYPE_CHECKING:
    from datasets import Dataset

PAST = Column("past", ("past_values", "context", "history", "input"), kind="numbers")
FUTURE = Column("future", ("future_values", "target", "actual", "output"), kind="numbers")
SERIES = Column("series", ("item_id", "unique_id", "series_id", "id"), required=False)
_SHOWN = 4  # values of a window that a report shows


@dataclass(frozen=True, kw_only=True)
class TimeSeriesForecasting(Task):
    """`season`: steps after which the naive forecast repeats itself, 24 of hours. Of a table of
    values: `target`, the columns to forecast, all that are numbers if left out; `stride`, steps
    from one window to the next."""

    season: int = 1
    target: str | None = None
    stride: int = 1

    name: ClassVar[str] = "time-series-forecasting"
    columns: ClassVar[tuple[Column, ...]] = (PAST, FUTURE, SERIES)
    counts_tokens: ClassVar[bool] = False
    # bf16 tells values to three digits: less than many series change in a step
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def __post_init__(self) -> None:
        refuse_unless_counts(self, "season", "stride")

    @property
    def given(self) -> tuple[str, ...]:
        return "past", "series"

    @property
    def metrics(self) -> tuple[str, ...]:
        return "mase", "forecast_mae"

    def arranged(self, tables: Mapping[str, Table], model: str, *, new: bool) -> dict[str, Table]:
        context, horizon = lengths(model)
        targets = [part.strip() for part in str(self.target or "").split(",") if part.strip()]
        return windows(tables, context, horizon, self.stride, targets, new=new)

    def fault(self, row: Mapping[str, Any]) -> str | None:
        past = row["past"]
        if len(past) <= self.season:
            return f"the past has {len(past)} values, no more than the season's {self.season}"
        return "the past never changes: nothing can be learnt from it" if still(past) else None

    def unfit(self, row: Mapping[str, Any], model: str) -> str | None:
        context, horizon = lengths(model)
        if len(row["past"]) < context:
            return f"the past has {len(row['past'])} values, and {model!r} needs {context}"
        if "future" in row and len(row["future"]) != horizon:
            return f"the future has {len(row['future'])} values, and {model!r} gives {horizon}"
        if "future" in row and still(row["past"][-context:]):
            return f"the last {context} values, which {model!r} sees, never change"
        return None

    def processor(self, model: str) -> int:
        """How many values the model sees."""
        return lengths(model)[0]

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name)
        if config.num_input_channels > 1 and mixes(config):
            raise InputError(
                f"model {name!r} looks at {config.num_input_channels} series at once; here each is "
                "forecast by itself: give a model without channel attention or mixing"
            )
        config.num_input_channels = 1
        model, fresh = models.load_model(forecaster(name), name, config, dtype, dropout=dropout)
        hold_statistics(model)
        return model, fresh

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def encode(
        self, rows: Dataset, processor: int, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        examples: list[dict[str, Any]] = [
            {"past": past[-processor:], "length": 1} for past in rows["past"]
        ]
        if labels is not None:
            for example, future in zip(examples, rows["future"], strict=True):
                example["labels"] = future
        return shortest_first(examples)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: int) -> dict[str, Tensor]:
        """(batch, context, 1) values, and those that follow as labels (batch, horizon, 1)."""
        batch = {"past_values": values([example["past"] for example in examples])}
        if "labels" in examples[0]:
            batch["labels"] = values([example["labels"] for example in examples])
        return batch

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """And the forecast (batch, horizon, 1)."""
        outputs, future = model(past_values=batch["past_values"]), batch["labels"]
        if (spread := distribution(model, outputs)) is not None:
            return -spread.log_prob(future).mean(), spread.mean
        errors = (outputs.prediction_outputs - future) / outputs.scale
        return errors.square().mean(), outputs.prediction_outputs

    def rows_of(self, outputs: Tensor, batch: Batch) -> Outputs:
        """(n, horizon)."""
        return outputs.squeeze(-1).float().cpu().numpy()

    def ask(self, model: Any, batch: Batch, processor: Any) -> Outputs:
        outputs = model(past_values=batch["past_values"])
        spread = distribution(model, outputs)
        mean = outputs.prediction_outputs if spread is None else spread.mean
        return self.rows_of(mean, batch)

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[Any]:
        return [row.tolist() for row in outputs]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        """What came, and the error of the naive forecast within all of the past."""
        return [
            (future, naive_scale(past, self.season))
            for past, future in zip(rows["past"], rows["future"], strict=True)
        ]

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        return [
            {"series": self._series(rows, i), "forecast": [round(float(x), 6) for x in row]}
            for i, row in enumerate(outputs)
        ]

    def shown(self, rows: Dataset, index: int) -> str:
        last = ", ".join(f"{x:g}" for x in rows["past"][index][-_SHOWN:])
        return f"{self._series(rows, index)}: …, {last}"

    def _series(self, rows: Dataset, index: int) -> str:
        known = rows["series"][index] if "series" in rows.column_names else ""
        return known or f"row {index + 1}"


def values(given: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(np.asarray(given), dtype=torch.float32)[..., None]


def still(past: Sequence[float]) -> bool:
    return all(value == past[0] for value in past)


def distribution(model: Any, outputs: Any) -> Any:
    """What the model answers with, where that is a distribution (batch, horizon, 1)."""
    of = getattr(model, "distribution_output", None)
    if not of:
        return None
    return of.distribution(outputs.prediction_outputs, loc=outputs.loc, scale=outputs.scale)


def mixes(config: Any) -> bool:
    """Whether its series are seen together, or have parameters of their own."""
    own = not getattr(config, "share_embedding", True) or not getattr(
        config, "share_projection", True
    )
    mixing = getattr(config, "mode", "") == "mix_channel"
    return own or mixing or getattr(config, "channel_attention", False)


@functools.cache
def lengths(name: str) -> tuple[int, int]:
    """Steps that the model sees, and steps that it forecasts."""
    config = models.configuration(name)
    forecaster(name)
    return config.context_length, config.prediction_length


def forecaster(name: str) -> str:
    """The class of transformers that forecasts with such a model, from values alone."""
    import transformers

    kind = type(models.configuration(name)).__name__.removesuffix("Config")
    found = getattr(transformers, f"{kind}ForPrediction", None)
    asked = inspect.signature(found.forward).parameters if found is not None else {}
    needed = [one for one, of in asked.items() if of.default is of.empty and one != "self"]
    if "past_values" not in needed or not set(needed) <= {"past_values", "kwargs"}:
        more = f" (it asks for {', '.join(needed)})" if needed else ""
        raise InputError(
            f"model {name!r} does not forecast a series from its values alone{more}: give a "
            "PatchTST or a PatchTSMixer"
        )
    return f"{kind}ForPrediction"
