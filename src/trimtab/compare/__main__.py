"""The parts of a comparison that have a process of their own: `python -m trimtab.compare PART`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable

from trimtab.compare import measured, prompted
from trimtab.core.errors import TrimtabError

PARTS: dict[str, Callable[..., None]] = {
    "measure": measured.measure,
    "few-shot": prompted.few_shot,
    "score": prompted.score,
}


def main() -> int:
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    part, arguments = sys.argv[1:]
    try:
        PARTS[part](**json.loads(arguments))
    except TrimtabError as error:
        print(json.dumps({"error": str(error)}))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
