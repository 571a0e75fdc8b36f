"""At the stacks of a model, runs of blocks with an input embedding: facts of the call are taken
down, prompts put in front, positions shifted, networks beside it heard.

The hooks are objects of this module, so that models pickle. They know arguments by the names that
transformers' models share (`input_ids`, `inputs_embeds`, `attention_mask`, `position_ids`,
`past_key_values`), and act on any module that uses them.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.call import Call, repeated
from trimtab.core.call import facts as checked
from trimtab.core.compose import over, routes
from trimtab.core.delta import Delta
from trimtab.core.errors import InputError
from trimtab.core.front import counted, flat, in_front, lengthen_cache, positions, prompts
from trimtab.core.host import Companion, Switch
from trimtab.core.method import Beside, Combine, Prompt
from trimtab.core.operator import Operator
from trimtab.core.site import Geometry
from trimtab.core.watch import tensors_in

_NOWHERE = Geometry("stack", 0, 0)


def parameters_of(module: nn.Module) -> list[str]:
    """The names of the arguments of a module's forward."""
    return list(inspect.signature(inspect.unwrap(type(module).forward)).parameters)[1:]


class EnterModel:
    """At the root: a call begins. What says who acts on which example is taken out of the
    arguments, unless the model has arguments of that name itself."""

    def __init__(self, switch: Switch, own: frozenset[str]) -> None:
        self.switch, self.own = switch, own

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        found = dict(self.switch.given)
        for name in ("route", "task_ids"):
            if kwargs.get(name) is not None:
                found[name] = checked(**{name: kwargs[name]})[name]
        kwargs = {k: v for k, v in kwargs.items() if k in self.own or k not in _FACTS}
        if found.get("route") is not None and not routes(self.switch.composition):
            raise InputError(
                f"a route is given, and the active adapters {self.switch.active} are not routed: "
                "activate Route(…) of them, or leave the route out"
            )
        call = Call(**found, unlabelled=_unlabelled(kwargs.get("labels")))
        call.regrows = kwargs.get("use_cache") is False and kwargs.get("logits_to_keep") == 1
        if call.route is not None and (shape := _input_shape(args, kwargs)):
            call.takes(shape)
        self.switch.call, self.switch.inside = call, True
        return args, kwargs


_FACTS = ("route", "task_ids")


_INPUTS = ("input_ids", "inputs_embeds", "decoder_input_ids", "pixel_values", "input_features")


def _input_shape(args: Any, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """(examples,) or (examples, positions, …) of what a module is given."""
    named = [kwargs[name] for name in _INPUTS if isinstance(kwargs.get(name), Tensor)]
    for tensor in (*named, *tensors_in((args, kwargs))):
        if tensor.ndim:
            floats = tensor.is_floating_point()
            return tuple(tensor.shape[: (2 if tensor.ndim == 3 else 1) if floats else None])
    return ()


def _unlabelled(labels: Any) -> Tensor | None:
    """What stands before the first label, where each position has a label of its own."""
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
        return None
    return (labels == -100).long().cumprod(1)


def _call(switch: Switch) -> Call:
    """The call of the root; a new one where a stack is called by itself."""
    if not switch.inside:
        switch.call = Call(**switch.given)
    return switch.call


class EnterBlocks:
    """Before a stack that embeds no tokens: called by itself, a call begins."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch

    def __call__(self, stack: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        call = _call(self.switch)
        if call.route is not None and (shape := _input_shape(args, kwargs)):
            call.takes(shape)


class EnterStack:
    """Before a stack: prompts and shifted positions, then the facts of the call."""

    def __init__(self, switch: Switch, name: str, names: list[str], read: bool) -> None:
        self.switch, self.name, self.names = switch, name, names
        self.read = read  # whether a decoder reads this stack's output
        self.attention: list[Companion] = []  # of this stack, with prefixes
        self.tables: list[nn.Embedding] = []  # of learned positions, one row each

    def __call__(self, stack: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = _call(self.switch)
        facts = {**dict(zip(self.names, args, strict=False)), **kwargs}
        past = facts.get("past_key_values")
        call.past[self.name] = length = _seen(past)
        call.cached[self.name] = past is not None
        self._count(stack, facts, call)
        companion = stack._modules.get("deltas")
        if isinstance(companion, Companion) and companion.acts():
            prompt = prompts(companion, _given(facts).shape[0])
            if prompt is not None:
                call.refuse_packed(self.name)
                self._prompt(stack, companion, prompt, facts, length)
                self._refuse_overflow(facts, length, prompt.shape[-2], 0)
        if n := positions(self.attention):
            self._refuse_overflow(facts, length, 0, n)
            self._shift(facts, length, n)
        self._lengthen_encoder_mask(facts)
        mask = facts.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            call.masks[self.name] = mask
        if call.route is not None:
            call.takes(_given(facts).shape[:2])
        return (), facts

    def _count(self, stack: Any, facts: Mapping[str, Any], call: Call) -> None:
        """Where transformers would take positions that start anew for further examples."""
        ids = facts.get("position_ids")
        if facts.get("attention_mask") is not None or call.cached[self.name]:
            return
        if isinstance(ids, Tensor) and ids.ndim == 2:
            call.positions[self.name] = ids
            if _caches(stack, facts) and not torch.compiler.is_compiling():
                _warn_packed(ids)

    def _prompt(
        self,
        stack: nn.Module,
        companion: Companion,
        prompt: Tensor,
        facts: dict[str, Any],
        past: int,
    ) -> None:
        """Before the first positions: the prompt, with a mask and positions to fit."""
        n = prompt.shape[-2]
        mask, ids = facts.get("attention_mask"), facts.get("position_ids")
        if mask is not None:
            mask = flat(mask, facts, _positions(facts) + max(0, past - n))
            facts["attention_mask"] = None if mask is None else in_front(mask, n)
        if not past:
            embeds = self._embeds(stack, facts)
            batch = embeds.shape[0]
            prompt = prompt[None] if prompt.ndim == 2 else prompt
            prompt = repeated(prompt, batch, "task_ids or route")
            facts["inputs_embeds"] = torch.cat([prompt.to(embeds), embeds], dim=1)
            lengthen_cache(facts.get("past_key_values"), n)
            types = facts.get("token_type_ids")
            if isinstance(types, Tensor):
                facts["token_type_ids"] = torch.cat([types[:, :1].expand(-1, n), types], dim=1)
            kept = _kept(companion, self.read)
            self.switch.call.prompted[self.name] = 0 if kept else n
        if isinstance(ids, Tensor):
            rows = [t.padding_idx + 1 for t in self.tables if t.padding_idx is not None]
            facts["position_ids"] = ids + n if past else counted(ids, n, max(rows, default=0))

    def _embeds(self, stack: Any, facts: dict[str, Any]) -> Tensor:
        ids = facts.get("input_ids")
        if ids is None:
            return facts["inputs_embeds"]
        facts["input_ids"] = None
        return stack.get_input_embeddings()(ids)

    def _shift(self, facts: dict[str, Any], past: int, n: int) -> None:
        """A prefix takes the first n positions: what follows counts from there. Where positions are
        learned their tables count on themselves, see `ShiftPositions`."""
        if "position_ids" not in self.names or self.tables:
            return
        ids = facts.get("position_ids")
        if ids is None:
            ids = torch.arange(past, past + _positions(facts), device=_given(facts).device)[None]
        facts["position_ids"] = ids + n

    def _refuse_overflow(self, facts: Mapping[str, Any], past: int, prompt: int, n: int) -> None:
        given = _positions(facts) + past + n
        for table in self.tables:
            room = table.num_embeddings - _first_row(table)
            if given > room and self._longest(given - n) + n > room:
                added = f"a prompt of {prompt}" if prompt else f"a prefix of {n}"
                left = room - prompt - n
                what = f"the input to {left} tokens" if left > 0 else f"{added} itself"
                raise InputError(
                    f"{given} positions do not fit: the stack {self.name!r} has learned {room}, "
                    f"and {added} takes its part of them; shorten {what}"
                )

    def _longest(self, positions: int) -> int:
        """Of the examples that are packed into these positions."""
        ids = self.switch.call.positions.get(self.name)
        if ids is None or torch.compiler.is_compiling():
            return positions
        return int(ids.max() - ids.min()) + 1

    @staticmethod
    def _lengthen_encoder_mask(facts: dict[str, Any]) -> None:
        """A decoder reads the encoder's prompt too, of which the caller's mask knows nothing."""
        states, mask = facts.get("encoder_hidden_states"), facts.get("encoder_attention_mask")
        if isinstance(states, Tensor) and isinstance(mask, Tensor) and mask.ndim == 2:
            missing = states.shape[1] - mask.shape[1]
            if missing > 0:
                facts["encoder_attention_mask"] = in_front(mask, missing)


def _caches(stack: Any, facts: Mapping[str, Any]) -> bool:
    """Whether the stack makes a cache, though none was given."""
    asked = facts.get("use_cache")
    return bool(
        getattr(getattr(stack, "config", None), "use_cache", False) if asked is None else asked
    )


def _warn_packed(ids: Tensor) -> None:
    if (ids.diff(dim=-1) < 1).any():
        warnings.warn(
            "several examples are packed into one row (position_ids start anew within it), and a "
            "cache is made: transformers then lets them see each other; call the model with "
            "use_cache=False",
            stacklevel=2,
        )


class ShiftPositions:
    """At a table of learned positions: what follows a prefix counts from its end."""

    def __init__(self, stack: EnterStack) -> None:
        self.stack = stack

    def __call__(self, table: nn.Embedding, args: Any, kwargs: dict[str, Any]) -> Any:
        n = positions(self.stack.attention)
        if not n:
            return None
        facts = {**dict(zip(parameters_of(table), args, strict=False)), **kwargs}
        if "past_key_values_length" in parameters_of(table):  # it counts by itself, or is told
            told = "position_ids" if facts.get("position_ids") is not None else None
            name = told or "past_key_values_length"
            return (), {**facts, name: facts.get(name, 0) + n}
        ids = facts["input"]
        if table.padding_idx is not None:  # padding has a row of its own
            n = n * (ids != table.padding_idx).to(ids)
        return (), {"input": ids + n}


def _first_row(table: nn.Embedding) -> int:
    """The row of the first position: some tables have rows for padding before it."""
    if table.padding_idx is not None:
        return table.padding_idx + 1
    return int(getattr(table, "offset", 0))


def _given(facts: Mapping[str, Any]) -> Tensor:
    held = facts.get("input_ids")
    held = facts.get("inputs_embeds") if held is None else held
    assert isinstance(held, Tensor)
    return held


def _positions(facts: Mapping[str, Any]) -> int:
    return _given(facts).shape[1]


def _seen(past: Any) -> int:
    """How many positions a cache holds."""
    length = getattr(past, "get_seq_length", None)
    return int(length()) if length is not None else 0


def _kept(companion: Companion, read: bool) -> bool:
    """Whether the prompt's positions stay in the output."""
    chosen = [d.method.keep for d in companion.active() if isinstance(d.method, Prompt)]
    asked = {keep for keep in chosen if keep is not None}
    if len(asked) > 1:
        raise InputError("of prompts that act together either all keep their positions or none")
    return asked.pop() if asked else read


class LeaveStack:
    """After the run of blocks: networks beside it change its output; prompts are cut off."""

    def __init__(self, switch: Switch, name: str) -> None:
        self.switch, self.name = switch, name
        self.companion: Companion | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        companion = self.companion
        if companion is None or not companion.acts():
            return output
        y = _states(output)
        if any(isinstance(delta.method, Beside | Combine) for delta in companion.active()):
            y = over(self.switch.composition, _Output(y), self._beside, self.switch.call)(y)
        n = self.switch.call.prompted.get(self.name, 0)
        return _with_states(output, y[:, n:])

    def _beside(self, name: str) -> dict[str, Delta]:
        """An adapter's deltas here but its prompts, which acted where the stack was entered."""
        assert self.companion is not None
        deltas = self.companion.of(name)
        return {key: d for key, d in deltas.items() if not isinstance(d.method, Prompt)}


class CutStates:
    """After a stack: of the states of all its blocks the prompt is cut off as of the last."""

    def __init__(self, switch: Switch, name: str) -> None:
        self.switch, self.name = switch, name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        n = self.switch.call.prompted.get(self.name, 0)
        found = output.get("hidden_states") if isinstance(output, Mapping) else None
        if n and found:
            given = max(h.shape[1] for h in found if h is not None)
            cut = [h if h is None or h.shape[1] < given else h[:, n:] for h in found]
            output["hidden_states"] = tuple(cut)
        return output


class _Output(Operator):
    """A stack's output, as the operator beneath the networks beside it."""

    def __init__(self, y: Tensor) -> None:
        self.y, self.geometry, self.dtype = y, _NOWHERE, y.dtype

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def tensors(self) -> dict[str, Tensor]:
        raise InputError("a stack has no one weight")


def _states(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return output["last_hidden_state"] if isinstance(output, Mapping) else output[0]


def _with_states(output: Any, states: Tensor) -> Any:
    if isinstance(output, Tensor):
        return states
    if isinstance(output, Mapping):
        output["last_hidden_state"] = states  # type: ignore[index]
        return output
    return (states, *output[1:])


class Tap:
    """At a block: its output is kept for laws that read several."""

    def __init__(self, switch: Switch, key: str) -> None:
        self.switch, self.key = switch, key

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.switch.call.taps[self.key] = output if isinstance(output, Tensor) else output[0]


class TapInput:
    """At an attention: its input is kept for prefixes that read it, until they have."""

    def __init__(self, companion: Companion) -> None:
        self.companion = companion

    def __call__(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        if self.companion.acts():
            x = args[0] if args else kwargs[parameters_of(module)[0]]
            self.companion.switch.call.taps[self.companion.site.name] = x
