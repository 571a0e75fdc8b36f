"""What one sees of a run while it trains, and its record line by line in `log.jsonl`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from transformers import TrainerCallback

from trimtab.core.errors import TrimtabError
from trimtab.store.files import write_text


class Log(TrainerCallback):
    """Every loss and every evaluation, one JSON object a line. A resumed run first drops the lines
    that came after the checkpoint it goes on from.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        kept = [entry for entry in read_log(self.path) if entry["step"] <= state.global_step]
        lines = [json.dumps(entry) + "\n" for entry in kept] if state.global_step else []
        write_text(self.path, "".join(lines))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        entry = {"step": state.global_step, **(logs or {})}
        try:
            with self.path.open("a", encoding="utf8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise TrimtabError(f"cannot write {self.path}: {error}") from None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line cut short by a kill is left out."""
    entries = []
    for line in path.read_text(encoding="utf8").splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


class Bar(TrainerCallback):
    """A progress bar with loss, metric, tokens per second and time left; plain lines where the
    output is no terminal; nothing when quiet.
    """

    def __init__(self, metric: str, quiet: bool) -> None:
        self.metric, self.quiet = metric, quiet
        self.console = Console(stderr=True)
        self.progress: Progress | None = None
        self.facts: dict[str, str] = {}
        self.lines = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.tokens, self.from_step = time.perf_counter(), 0, state.global_step
        self.seen_before = state.num_input_tokens_seen
        if not self.quiet and self.console.is_terminal:
            self.progress = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                console=self.console,
            )
            self.progress.start()
            self.bar = self.progress.add_task("", total=state.max_steps, facts="")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            self.facts["loss"] = f"{logs['loss']:.3f}"
        if f"eval_{self.metric}" in logs:
            self.facts[self.metric] = f"{logs[f'eval_{self.metric}']:.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.quiet:
            return
        text = self._text(state)
        if self.progress is not None:
            self.progress.update(self.bar, completed=state.global_step, facts=text)
        elif 10 * state.global_step // state.max_steps > self.lines:
            self.lines = 10 * state.global_step // state.max_steps
            print(
                f"step {state.global_step}/{state.max_steps}  {text}", file=sys.stderr, flush=True
            )

    def _text(self, state: Any) -> str:
        spent = time.perf_counter() - self.began
        rate = int(state.num_input_tokens_seen - self.seen_before) / spent
        done = state.global_step - self.from_step
        left = round(spent / done * (state.max_steps - state.global_step))
        facts = [f"{name} {value}" for name, value in self.facts.items()]
        facts += [f"{rate:,.0f} tokens/s"] if rate else []
        return "  ".join([*facts, f"{left // 60}:{left % 60:02} left"])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
