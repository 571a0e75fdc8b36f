"""The program `trimtab` and how its verbs end: 0, or one paragraph and 2 (wrong use) or 1 (failed
run).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from trimtab.cli import compare, data, inspect, methods, new_data, plan, transfer, tune
from trimtab.core.errors import TrimtabError

app = typer.Typer(
    name="trimtab",
    help="Parameter-efficient fine-tuning of any PyTorch model, its gain measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for register in (
    tune.register,
    plan.register,
    new_data.register,
    transfer.register,
    data.register,
    compare.register,
    inspect.register,
    methods.register,
):
    register(app)


# Newer versions of Typer bring their own click: take the class from what its errors inherit.
_USAGE = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


_TALKATIVE = ("bitsandbytes", "torchao", "torch.utils._pytree")
"""Libraries that tell at import which accelerators of theirs are not there."""


def main() -> None:
    """Run the command line; a user's mistake ends in a paragraph, never in a traceback."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.exit(run(lambda: app(standalone_mode=False)))


def run(call: Callable[[], Any]) -> int:
    try:
        outcome = call()
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except TrimtabError as error:
        return _fail(str(error), error.exit_code)
    except typer.Exit as ended:
        return ended.exit_code
    except typer.Abort:
        return _fail("stopped", 130)
    except _USAGE as error:
        message = error.format_message()  # type: ignore[attr-defined]
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message)
            return 2
        return _fail(message, 2)
    except KeyboardInterrupt:
        return _fail("stopped; a run goes on with trimtab tune --resume --out its folder", 130)
    except BrokenPipeError:  # the reader has gone; the interpreter would write to it once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
            raise
        return _fail("out of memory: a smaller --batch-size or --max-length needs less", 1)


def _fail(message: str, code: int) -> int:
    if "--json" in sys.argv:
        print(json.dumps({"error": message, "exit_code": code}))
    print(f"trimtab: error: {message}", file=sys.stderr)
    return code
