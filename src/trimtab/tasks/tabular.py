"""Rows of numbers and categories, and the transformer that reads them.

FT-Transformer (Gorishniy et al. 2021, arXiv:2106.11959) makes a token of each column j,

    number      T_j = b_j + W_j (x_j - μ_j) / σ_j
    category    T_j = b_j + E_j[x_j]

and answers from a [CLS] token before them. The network is that of rtdl_revisiting_models. Of a
model's folder, `config.json` has its sizes and labels, `table.json` the columns that it reads with
their means, deviations and categories, and `model.safetensors` its parameters.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab.core.errors import InputError, nearest
from trimtab.data import Column
from trimtab.data.cells import number, short, text
from trimtab.data.table import Fault, Table, of_rows
from trimtab.tasks import models

if TYPE_CHECKING:
    from datasets import Dataset

NUMBERS = Column("numbers", (), required=False, kind="numbers")
CATEGORIES = Column("categories", (), required=False, kind="words")
HEAD = "backbone.output.linear"
_SIZES = {
    "attention_n_heads": 4,
    "attention_dropout": 0.0,
    "ffn_d_hidden": None,
    "ffn_d_hidden_multiplier": 4 / 3,  # of ReGLU, as many parameters as 2 of ReLU
    "ffn_dropout": 0.0,
    "residual_dropout": 0.0,
}
_STILL = 1e-12  # a deviation below which a column says nothing


@dataclass(frozen=True)
class Columns:
    """What a model reads: each number's mean and deviation, each category's values in order."""

    numbers: Mapping[str, tuple[float, float]]
    categories: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], categories: Sequence[str]) -> Columns:
        """Those of the rows that a model is trained on first; what is no category is a number."""
        found: dict[str, tuple[float, float]] = {}
        for name in (name for name in rows[0] if name not in categories):
            given = np.array([number(name, row[name]) for row in rows])
            deviation = float(given.std())
            found[name] = float(given.mean()), deviation if deviation > _STILL else 1.0
        return cls(found, {name: sorted({row[name] for row in rows}) for name in categories})

    def cells(self, row: Mapping[str, object]) -> tuple[list[float], list[str]]:
        """Of a row of a file the numbers and the categories; `ValueError` with the reason."""
        numbers = [number(name, _there(name, row)) for name in self.numbers]
        return numbers, [self._known(name, _there(name, row)) for name in self.categories]

    def _known(self, name: str, value: object) -> str:
        given, known = text(name, value).strip(), self.categories[name]
        if given not in known:
            raise ValueError(
                f"the {name} is {short(given)}, which the model does not know; "
                f"{nearest(given, known)}"
            )
        return given

    def example(self, numbers: Sequence[float], categories: Sequence[str]) -> dict[str, Any]:
        """Standardised numbers, and each category's place."""
        scales, known = self.numbers.values(), self.categories.values()
        return {
            "x_cont": [(x - μ) / σ for x, (μ, σ) in zip(numbers, scales, strict=True)],
            "x_cat": [one.index(given) for given, one in zip(categories, known, strict=True)],
            "length": 1,
        }

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor | None]:
        """(batch, numbers) and (batch, categories); None of what the model does not read."""
        x_cont = torch.tensor([example["x_cont"] for example in examples], dtype=torch.float32)
        x_cat = torch.tensor([example["x_cat"] for example in examples], dtype=torch.long)
        return {
            "x_cont": x_cont if self.numbers else None,
            "x_cat": x_cat if self.categories else None,
        }


def _there(name: str, row: Mapping[str, object]) -> object:
    value = row[name]
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == "":
        raise ValueError(f"missing {name}")
    return value


# Data


def arranged(tables: Mapping[str, Table], model: str) -> dict[str, Table]:
    """The tables with the model's columns in two: `numbers`, `categories`. A cell that the model
    cannot take makes its row a fault."""
    return {split: _arranged(table, opened(model)[1], model) for split, table in tables.items()}


def _arranged(table: Table, columns: Columns, model: str) -> Table:
    names = [*columns.numbers, *columns.categories]
    if table.lines and (absent := [name for name in names if name not in table.header]):
        raise InputError(
            f"{table.where} has no column {absent[0]!r}, which {model!r} reads; "
            f"{nearest(absent[0], table.header)}"
        )
    kept = [i for i, name in enumerate(table.header) if name not in ("numbers", "categories")]
    given = [table.column(i) for i in range(len(table.header))]
    rows: list[tuple[int, Sequence[object]]] = []
    faults = list(table.faults)
    for line, *cells in zip(table.lines, *given, strict=True):
        try:
            found = columns.cells(dict(zip(table.header, cells, strict=True)))
            rows.append((line, (*(cells[i] for i in kept), *found)))
        except ValueError as error:
            faults.append(Fault(line, str(error)))
    header = (*(table.header[i] for i in kept), "numbers", "categories")
    return of_rows(table.where, header, rows, faults, unit=table.unit)


def rows_of(rows: Dataset) -> Iterator[tuple[list[float], list[str]]]:
    """The numbers and categories of each row."""
    none: list[list[Any]] = [[]] * len(rows)
    both = (rows[name] if name in rows.column_names else none for name in ("numbers", "categories"))
    return zip(*both, strict=True)


def shown(rows: Dataset, index: int) -> str:
    numbers, categories = (
        rows[name][index] if name in rows.column_names else [] for name in ("numbers", "categories")
    )
    return ", ".join([*(f"{x:g}" for x in numbers), *categories])


# Models


def network(columns: Columns, outputs: int, sizes: Mapping[str, Any]) -> nn.Module:
    """An FT-Transformer at random; `sizes` are the arguments of its backbone."""
    try:
        library = importlib.import_module("rtdl_revisiting_models")
    except ModuleNotFoundError:
        raise InputError(
            "transformers of tables are those of rtdl_revisiting_models, which is not installed: "
            "pip install 'trimtab[tasks]'"
        ) from None
    given = {**_SIZES, **sizes}
    found: nn.Module = library.FTTransformer(
        n_cont_features=len(columns.numbers),
        cat_cardinalities=[len(known) for known in columns.categories.values()],
        d_out=outputs,
        **given,
    )
    return found


def save(
    model: nn.Module,
    folder: Path,
    columns: Columns,
    labels: Sequence[str],
    sizes: Mapping[str, Any],
) -> None:
    """A model's folder. `labels` are the names of its outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["FTTransformer"], "labels": list(labels), "sizes": dict(sizes)}
    for name, told in (("config.json", config), ("table.json", asdict(columns))):
        (folder / name).write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", "utf8")
    save_file(model.state_dict(), folder / "model.safetensors")


@functools.cache
def opened(name: str) -> tuple[dict[str, Any], Columns]:
    """A model's configuration, and the columns that it reads."""
    folder = Path(models.resolve(name))
    try:
        config, table = (
            json.loads((folder / part).read_text("utf8")) for part in ("config.json", "table.json")
        )
        columns = Columns(
            {key: (float(μ), float(σ)) for key, (μ, σ) in table["numbers"].items()},
            {key: list(map(str, known)) for key, known in table["categories"].items()},
        )
        return {"labels": list(config["labels"]), "sizes": dict(config["sizes"])}, columns
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"model {name!r} is no transformer of tables: its folder needs a config.json with "
            "labels and sizes, and a table.json with numbers and categories; see "
            "docs/tasks/tabular-classification.md"
        ) from None


def load(name: str, labels: Sequence[str], dropout: bool) -> tuple[nn.Module, list[str]]:
    """The model with an output for each label, and the head's parameters where they are new."""
    (config, columns), folder = opened(name), Path(models.resolve(name))
    sizes = config["sizes"]
    if not dropout:
        sizes = {key: 0.0 if key.endswith("dropout") else size for key, size in sizes.items()}
    model = network(columns, len(labels), sizes)
    try:
        state = load_file(folder / "model.safetensors")
        if config["labels"] != list(labels):
            state = {key: x for key, x in state.items() if not key.startswith(HEAD)}
        missing, unknown = model.load_state_dict(state, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise models.loading_error(name, error) from None
    if unknown or any(not key.startswith(HEAD) for key in missing):
        which = [*unknown, *missing][0]
        raise InputError(f"model {name!r}: {which} of model.safetensors and of config.json differ")
    return model, list(missing)
