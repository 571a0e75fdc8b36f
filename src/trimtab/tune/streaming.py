"""Training examples of a file that is larger than memory, made as they are trained on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from trimtab.data.splits import as_dataset
from trimtab.data.streaming import Pieces
from trimtab.tasks.task import Encoded
from trimtab.tune.trainer import LengthGroups


class Stream(IterableDataset):
    """The pieces in the file's order, the examples of each in batches of like lengths, drawn anew
    each epoch from (seed, epoch, piece) alone. One epoch follows the other without an end: a
    Trainer counts the batches of a stream only, and a run that goes on is to meet the same ones
    in whichever epoch it stopped.

    Where several processes make batches, each takes its share of the pieces, others each epoch.
    """

    def __init__(
        self, pieces: Pieces, encode: Callable[[Any], Encoded], batch_size: int, seed: int
    ) -> None:
        self.pieces, self.encode = pieces, encode
        self.batch_size, self.seed = batch_size, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return itertools.chain.from_iterable(map(self.epoch, itertools.count()))

    def epoch(self, epoch: int) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        share, of = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, rows in enumerate(self.pieces()):
            if (number + epoch) % of != share or not len(rows):
                continue
            examples = self.encode(as_dataset(rows)).examples
            lengths = [example["length"] for example in examples]
            groups = LengthGroups(lengths, self.batch_size, self.seed + 7919 * number)
            groups.set_epoch(epoch)
            yield from (examples[i] for i in groups)
