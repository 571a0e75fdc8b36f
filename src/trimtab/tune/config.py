"""What a run is asked to do: the flags of `tune`, under the same names in YAML."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trimtab.core import registry
from trimtab.core.errors import InputError
from trimtab.core.method import Method, Selection
from trimtab.plan.file import Plan
from trimtab.plan.file import read as read_plan
from trimtab.plan.file import understand as understand_plan
from trimtab.tasks import Task, lookup


class Config(BaseModel):
    """One training run. The values left out are filled by `resolve`, from the method, the data and
    measurements of this machine, and saved with the run, so that it can be repeated and resumed."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    model: str
    data: str
    out: str
    task: str = "text-classification"
    task_arg: dict[str, Any] = {}
    method: str = "lora"
    target: str | list[str] | None = None
    rank: int | None = Field(None, ge=1)
    alpha: float | None = Field(None, gt=0)
    ranks: dict[str, int] = {}
    method_arg: dict[str, Any] = {}
    plan: dict[str, Any] | None = None
    force_plan: bool = False
    budget: str | None = None
    train: list[str] | None = None
    start_from: str | None = None
    from_library: str | None = None
    combine: Literal["fuse", "merge"] | None = None
    recipe: str | None = None
    teacher: str | None = None
    recipe_arg: dict[str, Any] = {}
    lr: float | None = Field(None, gt=0)
    epochs: float = Field(3, gt=0)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(32, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    max_length: int | None = Field(None, ge=2)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup: float = Field(0.06, ge=0, lt=1)
    patience: int | None = Field(3, ge=1)
    eval_every: int | None = Field(None, ge=1)
    save_every: int | None = Field(None, ge=1)
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    attention: str = "auto"
    products: Literal["auto", "exact", "int8"] = "auto"
    replicas: int | None = Field(None, ge=1)
    workers: int | None = Field(None, ge=0)
    base_dropout: bool | None = None
    head_only: bool = True
    probe_first: bool = True
    gradient_checkpointing: bool = False
    seed: int = Field(0, ge=0, lt=2**32)
    report_to: list[str] = []
    columns: dict[str, str] = {}
    text_column: str | None = None
    label_column: str | None = None
    skip_bad_rows: bool = False
    clean: list[str] = []
    augment: list[str] = []
    stream: bool = False
    train_rows: int | None = Field(None, ge=1)
    data_seed: int | None = Field(None, ge=0, lt=2**32)
    labels: list[str] | None = None
    first_position: bool | None = None
    digests: dict[str, str] = {}
    measured: dict[str, Any] = {}

    @field_validator("report_to", "train", "target", "clean", "augment", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """`a,b` on the command line is a list."""
        if isinstance(value, str) and "," in value and not value.startswith("re:"):
            return value.split(",")
        return value

    @field_validator("report_to", "train", "clean", "augment", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) and "," not in value else value

    def build_plan(self) -> Plan | None:
        """The run's plan, which its configuration holds."""
        return None if self.plan is None else understand_plan(self.plan, "the run's plan")

    def build_method(self) -> Method | dict[str, Method] | dict[str, list[Method]]:
        """The method with its hyper-parameters; with `ranks` or a plan, those by target."""
        made = self.build_plan()
        if made is not None and not self.selects:
            return made.methods()
        arguments = dict(self.method_arg)
        for key in ("rank", "alpha"):
            if getattr(self, key) is not None:
                arguments[key] = getattr(self, key)
        method = registry.build(self.method, arguments)
        if not self.ranks:
            return method
        plan = {
            target: registry.build(self.method, {**arguments, "rank": rank})
            for target, rank in self.ranks.items()
        }
        rest = self.target or list(method.targets)
        return {**plan, **dict.fromkeys([rest] if isinstance(rest, str) else rest, method)}

    def build_task(self) -> Task:
        """The task with its options."""
        return lookup(self.task, self.task_arg)

    @property
    def selects(self) -> bool:
        """Whether the method trains the base's own parameters."""
        return issubclass(registry.lookup(self.method), Selection)

    @property
    def autocast(self) -> bool:
        """Parameters that are trained in place stay in fp32 and are cast by autocast."""
        return self.selects and self.dtype == "bfloat16"

    def dump(self) -> str:
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def parse(values: Mapping[str, Any], where: str) -> Config:
    """A configuration from plain data, or an error that names the field, in the user's words."""
    try:
        config = Config(**_planned(values, where))
    except ValidationError as error:
        raise InputError(_explain(error, where)) from None
    if config.method != "auto":
        registry.lookup(config.method)
    if (config.method == "auto") != (config.budget is not None) and config.plan is None:
        raise InputError(
            f"{where}: --method auto and --budget belong together: --method auto --budget 0.5%"
        )
    return config


_OF_A_PLAN = ("target", "rank", "alpha", "ranks", "method_arg")


def _planned(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """With a plan's content in the place of its file, and the method that it says."""
    given = dict(values)
    if (asked := given.get("plan")) is None:
        return given
    if not isinstance(asked, str | Path | dict):
        raise InputError(f"{where}: --plan is the file of a plan, not {asked!r:.60}")
    plan = understand_plan(asked, where) if isinstance(asked, dict) else read_plan(Path(asked))
    given["plan"] = plan.content()
    if isinstance(asked, dict):  # a saved run's: its fields are filled already
        return given
    if (method := given.setdefault("method", plan.method)) != plan.method:
        raise InputError(
            f"{where}: --method {method}, but the plan is of {plan.method}: leave it out"
        )
    own = dict(plan.selection.arguments) if plan.selection is not None else {}
    for key in _OF_A_PLAN:
        if given.get(key) and given[key] != own:
            flag = f"--{key.replace('_', '-')}"
            raise InputError(f"{where}: {flag} is what the plan says: edit {asked} instead")
    if plan.selection is not None:
        given["method_arg"] = own
    if plan.lr is not None:
        given.setdefault("lr", plan.lr)
    return given


def read(path: Path) -> dict[str, Any]:
    """The fields of a YAML file."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold fields such as 'model: minilm', not {data!r:.60}")
    return {str(key).replace("-", "_"): value for key, value in data.items()}


def _explain(error: ValidationError, where: str) -> str:
    first = min(error.errors(), key=lambda one: one["type"] == "missing")
    field = str(first["loc"][0]) if first["loc"] else "?"
    flag = f"--{field.replace('_', '-')}"
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(field, Config.model_fields, n=1)
        hint = (
            f"; did you mean {close[0]!r}?"
            if close
            else f"; known: {', '.join(Config.model_fields)}"
        )
        return f"{where}: there is no field {field!r}{hint}"
    if first["type"] == "missing":
        return f"{where}: {flag} is missing: a run needs --model, --data and --out"
    return (
        f"{where}: {flag} {first['msg'][0].lower()}{first['msg'][1:]}, not {first.get('input')!r}"
    )
