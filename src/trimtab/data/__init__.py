"""Data for supervised tasks: read, checked row by row, split, and described.

Text, tags, numbers, chats, images, recordings and what is marked in them (`Column.kind`). The
demo's own data set is apart, in `trimtab.data.docstrings`.
"""

from trimtab.data.columns import Column as Column
from trimtab.data.loading import load as load
from trimtab.data.loading import read_rows as read_rows
from trimtab.data.splits import Splits as Splits
