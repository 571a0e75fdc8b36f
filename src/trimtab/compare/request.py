"""What a comparison is asked for: the flags of `compare`, kept as `compare.yaml`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trimtab.core.errors import InputError
from trimtab.store.files import write_text
from trimtab.tune.config import Config, read

FILE = "compare.yaml"
ALWAYS = ("full", "layers", "head")
"""What every comparison is against: all of the base, its last blocks, its head alone."""

_OF_COMPARE = {"out", "model", "data", "task", "method", "lr", "max_steps", "epochs", "seed",
               "train_rows", "data_seed", "columns"}  # fmt: skip
"""Fields of a run that the comparison itself decides."""
_UNBOUND = ("watts", "intensity", "margin")  # they change what is told, and nothing that is run


class Request(BaseModel):
    """One comparison: bases and methods, the budget that each gets, and what is told of it.

    Each (base, method) is tried at `trials` learning rates around the method's own, of which the
    validation split chooses one; `seeds` runs at that rate are what is reported. `sizes` are rows
    of train, None for all of them.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    models: list[str] = Field(min_length=1)
    data: str
    out: str
    task: str = "text-classification"
    task_arg: dict[str, Any] = {}
    columns: dict[str, str] = {}
    methods: list[str] = ["lora", "bitfit"]
    method_arg: dict[str, Any] = {}
    steps: int = Field(200, ge=1)
    trials: int = Field(3, ge=1, le=9)
    seeds: int = Field(1, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)
    sizes: list[int | None] = [None]
    shots: int = Field(8, ge=1)
    orders: int = Field(4, ge=1)
    baselines: bool = True
    tune_arg: dict[str, Any] = {}
    probe: str | None = None
    watts: float | None = Field(None, gt=0)
    intensity: float = Field(480.0, ge=0)
    margin: float | None = Field(None, ge=0)

    @field_validator("models", "methods", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [one for one in value.split(",") if one] if isinstance(value, str) else value

    @field_validator("methods")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))

    @field_validator("sizes", mode="before")
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        """`32,128,all` as [32, 128, None], the fewest first."""
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list):
            return value
        found = {None if one in (None, "all") else int(one) for one in parts}
        if any(one is not None and one < 1 for one in found):
            raise ValueError("must be rows of train, such as 32,128,all")
        return sorted(found, key=lambda one: (one is None, one))

    @property
    def every(self) -> list[str]:
        """The methods to run: those asked for, and those that every comparison is against."""
        return list(dict.fromkeys([*self.methods, *(ALWAYS if self.baselines else ())]))

    @property
    def largest(self) -> int | None:
        """The rows of train at which methods are compared."""
        return self.sizes[-1]

    def config(self, model: str, method: str, out: str, **own: Any) -> dict[str, Any]:
        """The fields of one run of `tune`."""
        arguments = self.method_arg.get(method, {})
        fields = {
            "model": model,
            "data": self.data,
            "task": self.task,
            "task_arg": self.task_arg,
            "columns": self.columns,
            "method": method,
            "max_steps": self.steps,
            "patience": None,  # a budget of steps is spent
            "eval_every": max(1, self.steps // 4),
            "data_seed": self.seed,
            "seed": self.seed,
            "train_rows": self.largest,
            "out": out,
            **self.tune_arg,
            **own,
        }
        if method == "head":
            fields.pop("augment", None)  # its features are computed once
        return {**fields, **({"method_arg": arguments} if arguments else {})}

    def save(self) -> None:
        fields = {**self.model_dump(), "out": "."}
        text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
        write_text(Path(self.out) / FILE, text)


def parse(values: Mapping[str, Any], where: str) -> Request:
    """A request from plain data, or an error that names the field, in the user's words."""
    fields = dict(values)
    if "model" in fields:
        if "models" in fields:
            raise InputError(f"{where}: --model is one base and --models several: give one of them")
        fields["models"] = [fields.pop("model")]
    try:
        request = Request(**fields)
    except ValidationError as error:
        raise InputError(_explain(error, where)) from None
    _refuse_arguments(request)
    return request


def open_request(values: Mapping[str, Any]) -> Request:
    """The request, joined with what `out` holds already: what contradicts that is an error."""
    out = Path(str(values["out"])) if "out" in values else None
    if out is None or not (out / FILE).exists():
        return parse(values, "trimtab compare")
    saved = parse({**read(out / FILE), "out": str(out)}, str(out / FILE))
    given = dict(values)
    if "model" in given:
        given["models"] = [given.pop("model")]
    asked = parse({**saved.model_dump(), **given}, "trimtab compare")
    for key in given:
        wanted, there = getattr(asked, key), getattr(saved, key)
        if key not in ("out", *_UNBOUND) and wanted != there:
            flag = "model" if key == "models" and "model" in values else key.replace("_", "-")
            flag = "column" if key == "columns" else flag
            raise InputError(
                f"--{flag} {_told(wanted)} contradicts the comparison in {out}, "
                f"which has {_told(there)}: leave it out, or choose another --out"
            )
    return asked


def _told(value: Any) -> str:
    if isinstance(value, list):
        return ",".join("all" if one is None else str(one) for one in value)
    return str(value)


def _refuse_arguments(request: Request) -> None:
    for method in request.method_arg:
        if method not in request.every:
            raise InputError(
                f"--method-arg {method}.…: {method!r} is none of the methods that are compared: "
                f"{', '.join(request.every)}"
            )
    for key in request.tune_arg:
        if key in _OF_COMPARE:
            raise InputError(f"--tune-arg {key}: this is decided by the comparison itself")
        if key not in Config.model_fields:
            close = difflib.get_close_matches(key, Config.model_fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; see trimtab tune --help"
            raise InputError(f"--tune-arg {key}: a run has no such field{hint}")


def _explain(error: ValidationError, where: str) -> str:
    first = min(error.errors(), key=lambda one: one["type"] == "missing")
    field = str(first["loc"][0]) if first["loc"] else "?"
    flag = "--model" if field == "models" else f"--{field.replace('_', '-')}"
    if first["type"] == "extra_forbidden":
        return f"{where}: there is no field {field!r}; known: {', '.join(Request.model_fields)}"
    if first["type"] == "missing":
        return f"{where}: {flag} is missing: a comparison needs --model, --data and --out"
    said = first["msg"].removeprefix("Value error, ")
    return f"{where}: {flag} {said[0].lower()}{said[1:]}, not {first.get('input')!r}"
