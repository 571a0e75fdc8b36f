"""Which to choose and why, by a rule that anyone can apply to the figures.

Full fine-tuning is the reference, unless others beat it beyond the interval of their difference:
then of these the one that validation prefers. A method is non-inferior to the reference if the
whole 95 % interval of its difference, paired on the test examples, lies above -margin (below
+margin where less is better). Of those that are, the one that keeps the fewest bytes for each task
is chosen; of equals, the one that trains faster.
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
_ONE_SIDE = 0.025  # of a 95 % interval
_FEW_ORDERS = 1.5  # times the milliseconds of another, beyond which a word is due


def judge(found: Found) -> dict[str, Any]:
    """The place of the chosen row, those that are non-inferior, and the paragraph."""
    rows, reference, rival = found["rows"], found["reference"], found["rival"]
    if reference is None:
        return {"choice": None, "non_inferior": [], "text": "No run came to its end."}
    good = [i for i, row in enumerate(rows) if i != rival and _non_inferior(row, found)]
    choice = min([rival, *good], key=lambda i: _cost(rows[i]))
    sentences = [_of_reference(rows[reference], found), *_beaten(found)]
    if choice == rival:
        sentences += _stay(found)
    else:
        sentences += _choose(rows[choice], rows[rival], len(good), found)
    sentences += _forgot(rows[choice], rows[reference])
    return {"choice": choice, "non_inferior": good, "text": " ".join(sentences)}


def rival_of(rows: Sequence[Found], reference: int | None, *, higher: bool) -> int | None:
    """The row that a choice is held against: the reference, or what beats it, by validation."""
    if reference is None:
        return None
    better = [
        i
        for i, row in enumerate(rows)
        if row["against"] and row["against"]["shows"] == "better" and row["validation"] is not None
    ]
    sign = 1 if higher else -1
    return max(better, key=lambda i: sign * rows[i]["validation"], default=reference)


def _difference(row: Found, found: Found) -> Any:
    """To the rival."""
    return row["against" if found["rival"] == found["reference"] else "against_rival"]


def _non_inferior(row: Found, found: Found) -> bool:
    against = _difference(row, found)
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


def _beaten(found: Found) -> list[str]:
    """Those that beat the reference beyond doubt."""
    rows, reference, rival = found["rows"], found["reference"], found["rival"]
    names = [
        f"{named(row, found)} ({_signed(row['against'])})"
        for row in rows
        if row["against"] and row["against"]["shows"] == "better" and row["kind"] != "base"
    ]
    if not names:
        return []
    full = named(rows[reference], found)
    said = [f"Better than {full} beyond its interval: {', '.join(names)}."]
    if len(names) > 1 and rival != reference:
        said.append(f"Of these validation prefers {named(rows[rival], found)}.")
    return said


def _stay(found: Found) -> list[str]:
    """Nothing cheaper was shown to be as good as the rival."""
    rows, rival = found["rows"], found["rival"]
    verb = "Keep" if rival == found["reference"] else "Choose"
    margin = numbers.metric(found["margin"])
    said = [
        f"{verb} {named(rows[rival], found)}: no cheaper way was shown to lose less than {margin} "
        f"against it. It keeps {size(rows[rival]['bytes'])}."
    ]
    sign = 1 if found["higher_is_better"] else -1
    others = [
        row
        for row in rows
        if (known := _difference(row, found))
        and known["value"] is not None
        and row["bytes"]
        and _cost(row) < _cost(rows[rival])
    ]
    if not others:
        return said
    nearest = max(others, key=lambda row: sign * _difference(row, found)["value"])
    difference = _difference(nearest, found)
    told = f"{named(nearest, found)} ({_signed(difference)}, {size(nearest['bytes'])})"
    said.append(f"The nearest that is cheaper is {told}.")
    if difference["shows"] == "no difference shown":
        said.append("More test examples would narrow that interval.")
    return said


def _choose(row: Found, rival: Found, good: int, found: Found) -> list[str]:
    kept = f"{size(row['bytes'])}, {_times(rival['bytes'], row['bytes'])}"
    side = f"above {numbers.metric(-found['margin'])}"
    if not found["higher_is_better"]:
        side = f"below {numbers.metric(found['margin'], signed=True)}"
    least = (
        f"Of the {good} ways of which that holds, it keeps the least: {kept}."
        if good > 1
        else f"That holds of it alone, and it keeps {kept}."
    )
    said = [
        f"Choose {named(row, found)}: its difference to {named(rival, found)} is "
        f"{_signed(_difference(row, found))}, wholly {side}, the margin. {least}"
    ]
    said += _several(found)
    if row["kind"] == rival["kind"] == "trained" and row["seconds"] and rival["seconds"]:
        said.append(
            f"It trained in {numbers.duration(row['seconds'])} against "
            f"{numbers.duration(rival['seconds'])}."
        )
    slow, fast = _prediction(row), _prediction(rival)
    if slow and fast and slow > _FEW_ORDERS * fast:
        said.append(
            f"But each prediction takes {slow:.1f} ms against {fast:.1f} ms: where many are made, "
            "a trained adapter is cheaper."
        )
    return said


def _several(found: Found) -> list[str]:
    """What it means that many were looked at: by the sum of the chances of each (Bonferroni)."""
    tried = sum(
        1
        for i, row in enumerate(found["rows"])
        if i != found["rival"] and row["kind"] != "base" and _difference(row, found)
    )
    if tried < 2:
        return []
    chance = min(1.0, tried * _ONE_SIDE)
    return [
        f"Each of the {tried} that were tried has an interval of its own: if all of them lost the "
        f"margin, one would still pass in up to {chance:.0%} of such comparisons."
    ]


def _prediction(row: Found) -> float | None:
    took = row["milliseconds"] or {}
    return took.get("merged") or took.get("unmerged")


def _forgot(row: Found, full: Found) -> list[str]:
    one, other = row["forgetting"], full["forgetting"]
    if row is full or not one or not other or one["measure"] is None or other["measure"] is None:
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
