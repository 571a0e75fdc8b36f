"""A plan as a file: what trains at which site, with what rank, and why. One reads it, edits it, and
gives it to `tune --plan`.

    sites:
    - {site: encoder.layer.0.attention.self.query, method: lora, rank: 4, gain: 0.0213, cost: 3072}

A site of rank 0 (`trains: no`, where the method has no rank) is left out. `site` may be any target,
and `with` holds further hyper-parameters. Gain, cost and sensitivity are told, and change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from trimtab.core import registry
from trimtab.core.adapter import carries, record
from trimtab.core.errors import AdapterMismatch, InputError, SiteNotFound, nearest
from trimtab.core.method import Method, Selection
from trimtab.match import ROLES, sites
from trimtab.plan.candidates import at_rank, ranked
from trimtab.store import fingerprint
from trimtab.store.files import write_text

SCHEMA = 1
WHOLE = "model"  # the site of a method that chooses parameters of the whole base

_HEAD = """\
# What trains where, made by trimtab plan. Edit it, then: trimtab tune --plan THIS_FILE …
# rank 0 (or trains: no) leaves a site out; a further hyper-parameter is with: {dropout: 0.1}.
# sensitivity: the gain of all ranks that were weighed; gain: of those taken; cost: parameters.
"""


@dataclass(frozen=True)
class Entry:
    """A method at a site. `rank` is None where the method has none; `trains` is then what counts.
    `spent` is the size of what a run has changed there, of a plan that was revised."""

    site: str
    method: str
    rank: int | None = None
    trains: bool = True
    gain: float | None = None
    cost: int | None = None
    sensitivity: float | None = None
    spent: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def taken(self) -> bool:
        return bool(self.rank) if self.rank is not None else self.trains

    def build(self) -> Method:
        """The method with its rank, at the scale of its update that its defaults have."""
        method = registry.build(self.method, self.arguments)
        return method if self.rank is None else at_rank(method, self.rank)

    def data(self) -> dict[str, Any]:
        """As the file says it; what is not known is left out."""
        chosen = {"trains": self.trains} if self.rank is None else {"rank": self.rank}
        told = {"site": self.site, "method": self.method, **chosen}
        for name in ("gain", "cost", "sensitivity", "spent"):
            if (value := getattr(self, name)) is not None:
                told[name] = float(f"{value:.4g}") if isinstance(value, float) else value
        return {**told, "with": dict(self.arguments)} if self.arguments else told


_SAID = ("model", "task", "data", "base", "estimator", "budget", "parameters", "of")
_MEASURED = ("batches", "examples", "seconds", "lr", "notes")


@dataclass(frozen=True)
class Plan:
    """Entries in the model's order, and where they come from. `base` is the fingerprint of the base
    without its new head; `parameters` those that the plan trains, `of` those of the base."""

    entries: tuple[Entry, ...]
    budget: str | None = None
    estimator: str | None = None
    base: str | None = None
    model: str | None = None
    task: str | None = None
    data: str | None = None
    parameters: int | None = None
    of: int | None = None
    batches: int | None = None
    examples: int | None = None
    seconds: float | None = None
    lr: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def taken(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.taken]

    @property
    def method(self) -> str:
        """The one that spends most; its learning rate is the run's, if no other is given."""
        spent: dict[str, int] = {}
        for entry in self.taken:
            spent[entry.method] = spent.get(entry.method, 0) + (entry.cost or 0)
        return max(spent, key=lambda name: spent[name])

    @property
    def selection(self) -> Entry | None:
        """The entry that trains the base's own parameters, and stands alone."""
        first = self.taken[0]
        return first if issubclass(registry.lookup(first.method), Selection) else None

    def methods(self) -> dict[str, list[Method]]:
        """As `attach` takes it: target -> methods."""
        found: dict[str, list[Method]] = {}
        for entry in self.taken:
            found.setdefault(entry.site, []).append(entry.build())
        return found

    def content(self) -> dict[str, Any]:
        """As plain data, for files."""
        told = {name: getattr(self, name) for name in (*_SAID, *_MEASURED)}
        told["notes"] = list(self.notes) or None
        known = {name: value for name, value in told.items() if value is not None}
        return {"schema": SCHEMA, **known, "sites": [entry.data() for entry in self.entries]}

    def require(self, model: nn.Module, fresh: tuple[str, ...], *, force: bool = False) -> None:
        """Raise where the plan is of another base, or names a site that this model does not have.

        Raises:
            AdapterMismatch: another base, unless `force`.
            SiteNotFound: a site that is not there, with the nearest names.
        """
        here = base(model, fresh)
        if not force and self.base is not None and self.base != here:
            raise AdapterMismatch(
                f"the plan was made for another base ({self.model or 'unnamed'}, {self.base}) than "
                f"this one ({here}): make one for it with trimtab plan, or pass --force-plan to "
                "use this one all the same"
            )
        names = [path for site in sites(model) for path in (site.name, *site.paths)]
        for entry in self.taken:
            plain = not any(mark in entry.site for mark in "*?") and "re:" not in entry.site
            if plain and entry.site not in (*ROLES, WHOLE) and not _ends(entry.site, names):
                raise SiteNotFound(
                    f"the plan's site {entry.site!r} is not in this model; "
                    f"{nearest(entry.site, dict.fromkeys(names))}"
                )


def _ends(site: str, names: list[str]) -> bool:
    return any(f".{name}".endswith(f".{site}") for name in names)


def base(model: nn.Module, fresh: tuple[str, ...]) -> str:
    """A short name for the base, whatever head is new upon it."""
    originals = record(model).originals() if carries(model) else {}
    described = fingerprint.describe(model, (), originals)
    kept = {name: one for name, one in described.items() if name not in set(fresh)}
    return fingerprint.fingerprint(kept)


def write(plan: Plan, path: Path) -> None:
    """Write the plan whole or not at all, a site a line."""
    content = plan.content()
    entries = content.pop("sites")
    head = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    write_text(path, f"{_HEAD}{head}sites:\n{''.join(_lines(entries))}")


def _lines(entries: list[dict[str, Any]]) -> list[str]:
    """In columns: the names are padded, and JSON is YAML's flow style."""
    cells = [{key: f"{key}: {_scalar(value)}" for key, value in e.items()} for e in entries]
    keys = list(dict.fromkeys(key for cell in cells for key in cell))
    width = {key: max(len(cell.get(key, "")) for cell in cells) for key in keys}
    lines = []
    for cell in cells:
        last = [key for key in keys if key in cell][-1]
        parts = [
            cell[key] if key == last else f"{cell[key]},".ljust(width[key] + 1)
            for key in keys
            if key in cell
        ]
        lines.append(f"- {{{' '.join(parts)}}}\n")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, str) and value.replace("_", "").replace(".", "").isalnum():
        return value if isinstance(yaml.safe_load(value), str) else json.dumps(value)
    told = json.dumps(value, ensure_ascii=False)
    # 1e-09 is a number in JSON, and a word in YAML.
    return told.replace("e", ".0e") if isinstance(value, float) and "." not in told else told


def read(path: Path) -> Plan:
    """Read a plan; errors name the file, the site and what is wrong there."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise InputError(
            f"there is no plan {path}: make one with trimtab plan --out {path}"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    return understand(content, str(path))


def understand(content: Any, where: str) -> Plan:
    """A plan from what a file or a run's configuration holds."""
    if not isinstance(content, Mapping) or not isinstance(content.get("sites"), list):
        raise InputError(f"{where} is no plan: it has no list of sites, which trimtab plan writes")
    if content.get("schema", SCHEMA) != SCHEMA:
        raise InputError(f"{where} is a plan of schema {content['schema']}; known is {SCHEMA}")
    known = {*_SAID, *_MEASURED, "schema", "sites"}
    for key in content:
        if key not in known:
            raise InputError(f"{where}: a plan has no field {key!r}; {nearest(key, known)}")
    entries = tuple(_entry(one, i, where) for i, one in enumerate(content["sites"], start=1))
    if not any(entry.taken for entry in entries):
        raise InputError(f"{where}: every site has rank 0: nothing would be trained")
    held: dict[str, Any] = {name: content.get(name) for name in (*_SAID, *_MEASURED)}
    plan = Plan(entries, **{**held, "notes": tuple(held["notes"] or ())})
    if plan.selection is not None and len(plan.taken) > 1:
        raise InputError(
            f"{where}: {plan.selection.method} trains the base's own parameters, and stands alone"
        )
    return plan


_FIELDS = ("site", "method", "rank", "trains", "gain", "cost", "sensitivity", "spent", "with")


def _entry(one: Any, number: int, where: str) -> Entry:
    if not isinstance(one, Mapping) or not isinstance(one.get("site"), str):
        raise InputError(f"{where}: entry {number} of sites names no site: {one!r:.80}")
    said = f"{where}: {one['site']}"
    for key in one:
        if key not in _FIELDS:
            raise InputError(f"{said}: there is no field {key!r}; {nearest(key, _FIELDS)}")
    method, rank, trains = one.get("method"), one.get("rank"), one.get("trains", True)
    try:
        has_rank = ranked(registry.build(str(method), one.get("with") or {}))
    except InputError as error:
        raise InputError(f"{said}: {error}") from None
    if has_rank and "with" not in one and rank is None:
        raise InputError(f"{said}: {method} needs a rank, a whole number; 0 leaves the site out")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0):
        raise InputError(f"{said}: rank is a whole number from 0, not {rank!r}")
    if rank is not None and not has_rank:
        raise InputError(f"{said}: {method} has no rank; write trains: yes or trains: no")
    if not isinstance(trains, bool):
        raise InputError(f"{said}: trains is yes or no, not {trains!r}")
    numbers = {key: one.get(key) for key in ("gain", "cost", "sensitivity", "spent")}
    for key, value in numbers.items():
        if value is not None and not isinstance(value, int | float):
            raise InputError(f"{said}: {key} is a number, not {value!r}; or leave it out")
    return Entry(one["site"], str(method), rank, trains, **numbers, arguments=one.get("with") or {})
