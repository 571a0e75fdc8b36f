"""Which to choose and why, by a rule that anyone can apply to the figures.

A method is non-inferior to full fine-tuning if the whole 95 % interval of its difference, paired on
the test examples, lies above -margin (below +margin where less is better). Of those that are, the
one that keeps the fewest bytes for each task is chosen; of equals, the one that trains faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.compare import numbers
from trimtab.compare.pairing import Runs
from trimtab.core.counts import size
from trimtab.evaluate.bootstrap import Interval
from trimtab.evaluate.metrics import by_label

Found = Mapping[str, Any]
_CLASSES = 14  # of the per-class picture: those that changed most
_FEW_ORDERS = 1.5  # times the milliseconds of another, beyond which a word is due


def judge(found: Found) -> dict[str, Any]:
    """The place of the chosen row, those that are non-inferior, and the paragraph."""
    rows, reference = found["rows"], found["reference"]
    if reference is None:
        return {"choice": None, "non_inferior": [], "text": "No run came to its end."}
    good = [i for i, row in enumerate(rows) if _non_inferior(row, found)]
    choice = min([reference, *good], key=lambda i: _cost(rows[i]))
    sentences = [_of_reference(rows[reference], found)]
    if choice == reference:
        sentences += _stay(found)
    else:
        sentences += _choose(rows[choice], rows[reference], len(good), found)
    sentences += _better(found)
    return {"choice": choice, "non_inferior": good, "text": " ".join(sentences)}


def _non_inferior(row: Found, found: Found) -> bool:
    against = row["against"]
    if against is None or against["low"] is None or row["bytes"] is None or row["kind"] == "base":
        return False
    if found["higher_is_better"]:
        return bool(against["low"] > -found["margin"])
    return bool(against["high"] < found["margin"])


def _cost(row: Found) -> tuple[float, float]:
    return row["bytes"], row["seconds"] or 0.0


def named(row: Found, found: Found) -> str:
    """The method; of several bases, on which."""
    return row["method"] if len(found["request"]["models"]) == 1 else (
        f"{row['method']} on {row['model']}"
    )  # fmt: skip


def _told(test: Found) -> str:
    return numbers.with_bounds(_interval(test))


def _interval(one: Found) -> Interval:
    nan = float("nan")
    low, high = (nan if one[key] is None else one[key] for key in ("low", "high"))
    return Interval(one["value"], low, high, one["n"])


def _signed(one: Found) -> str:
    return numbers.with_bounds(_interval(one), signed=True)


def _of_reference(row: Found, found: Found) -> str:
    test = row["test"]
    return (
        f"On {numbers.count(test['n'])} test examples {named(row, found)} reaches "
        f"{found['metric']} {_told(test)}, and keeps {size(row['bytes'])} for the task."
    )


def _stay(found: Found) -> list[str]:
    """Nothing cheaper was shown to be as good."""
    rows, reference = found["rows"], found["reference"]
    margin = numbers.metric(found["margin"])
    sign = 1 if found["higher_is_better"] else -1
    others = [
        row for i, row in enumerate(rows)
        if i != reference and row["against"] and row["against"]["value"] is not None
        and row["kind"] != "base"
    ]  # fmt: skip
    own = f"no cheaper way was shown to lose less than {margin} against it"
    if not others:
        return [f"Keep {named(rows[reference], found)}: {own}."]
    nearest = max(others, key=lambda row: sign * row["against"]["value"])
    return [
        f"Keep {named(rows[reference], found)}: {own}.",
        f"The nearest is {named(nearest, found)} ({_signed(nearest['against'])}, "
        f"{size(nearest['bytes'])}); more test examples would narrow that interval, and more "
        "steps may close the gap.",
    ]


def _choose(row: Found, full: Found, good: int, found: Found) -> list[str]:
    kept = f"{size(row['bytes'])}, {_times(full['bytes'], row['bytes'])}"
    side = f"above {numbers.metric(-found['margin'])}"
    if not found["higher_is_better"]:
        side = f"below {numbers.metric(found['margin'], signed=True)}"
    least = (
        f"Of the {good} ways of which that holds, it keeps the least: {kept}."
        if good > 1
        else f"That holds of it alone, and it keeps {kept}."
    )
    said = [
        f"Choose {named(row, found)}: its difference to {named(full, found)} is "
        f"{_signed(row['against'])}, wholly {side}, the margin. {least}"
    ]
    if row["kind"] == "trained" and row["seconds"] and full["seconds"]:
        said.append(
            f"It trained in {numbers.duration(row['seconds'])} against "
            f"{numbers.duration(full['seconds'])}."
        )
    slow, fast = _prediction(row), _prediction(full)
    if slow and fast and slow > _FEW_ORDERS * fast:
        said.append(
            f"But each prediction takes {slow:.1f} ms against {fast:.1f} ms: where many are made, "
            "a trained adapter is cheaper."
        )
    return [*said, *_forgot(row, full)]


def _prediction(row: Found) -> float | None:
    took = row["milliseconds"] or {}
    return took.get("merged") or took.get("unmerged")


def _forgot(row: Found, full: Found) -> list[str]:
    one, other = row["forgetting"], full["forgetting"]
    if not one or not other or one["measure"] is None or other["measure"] is None:
        return []
    return [
        f"With it on, the base has forgotten {numbers.metric(one['adapted'])} against "
        f"{numbers.metric(other['adapted'])} ({one['measure']}); with it off, "
        f"{numbers.metric(one['without'])}."
    ]


def _times(many: float, few: float) -> str:
    if not few:
        return "next to nothing"
    factor = many / few
    return f"{factor:,.0f} times less" if factor >= 2 else f"against {size(int(many))}"


def _better(found: Found) -> list[str]:
    """Those that beat the reference beyond doubt."""
    names = [
        f"{named(row, found)} ({_signed(row['against'])})"
        for row in found["rows"]
        if row["against"] and row["against"]["shows"] == "better"
    ]
    if not names:
        return []
    full = named(found["rows"][found["reference"]], found)
    return [f"Better than {full} beyond its interval: {', '.join(names)}."]


def by_class(
    found: Found, runs: Sequence[Runs | None], references: Sequence[Any] | None
) -> dict[str, Any] | None:
    """F1 of each class under the chosen method, less that under the reference, where answers are
    labels or tags; the first seed's runs."""
    reference, choice = found["reference"], found["verdict"]["choice"]
    if choice == reference:
        choice = _second(found)
    if references is None or reference is None or choice is None:
        return None
    one, other = runs[choice], runs[reference]
    if one is None or other is None or not (flat := _labels(references)):
        return None
    new, old = (by_label(_labels(side[0]), flat) for side in (one, other))
    changes: list[dict[str, Any]] = [
        {"label": str(label), "reference": old.get(label, 0.0), "chosen": new.get(label, 0.0)}
        for label in dict.fromkeys([*new, *old])
        if label != "O"
    ]
    changes.sort(key=lambda one: -abs(one["chosen"] - one["reference"]))
    return {
        "chosen": choice,
        "reference": reference,
        "classes": len(changes),
        "most": max((abs(one["chosen"] - one["reference"]) for one in changes), default=0.0),
        "shown": changes[:_CLASSES],
    }


def _second(found: Found) -> int | None:
    """Of the others the one that validation likes best."""
    sign = 1 if found["higher_is_better"] else -1
    others = [
        i for i, row in enumerate(found["rows"])
        if i != found["reference"] and row["kind"] == "trained" and row["validation"] is not None
    ]  # fmt: skip
    return max(others, key=lambda i: sign * found["rows"][i]["validation"], default=None)


def _labels(column: Sequence[Any]) -> list[str]:
    """One label an example, or a tag for each word of all examples; nothing of other answers."""
    if all(isinstance(one, str) for one in column):
        return list(column) if len(set(column)) <= len(column) / 2 else []
    if all(isinstance(one, list) and all(isinstance(t, str) for t in one) for one in column):
        return [tag for tags in column for tag in tags]
    return []
