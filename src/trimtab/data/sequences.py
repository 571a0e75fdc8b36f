"""Text that is no table: sentences with a tag for each word (CoNLL), and plain texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from trimtab.core.errors import InputError
from trimtab.data.table import Fault, Table, decode, of_rows

Lines = list[tuple[int, str]]  # each with its number

_BLANK_SHARE = 0.1  # of the lines; from here on blank lines part paragraphs, and are no accident


def read_conll(data: bytes, where: str) -> Table:
    """A word on each line, its tag in the last column, a blank line after each sentence (Tjong Kim
    Sang and De Meulder 2003, arXiv:cs/0306050).

    Columns are parted by tabs, or by blanks where the first line has no tab. A single column is
    words to be tagged. Lines `-DOCSTART-`, and comments before a sentence, are passed over.
    """
    part, lines = _columns(data)
    counts = Counter(len(part(line)) for _, line in lines if line.strip())
    if not counts:
        raise InputError(f"{where} has no words")
    width = counts.most_common(1)[0][0]
    rows, faults = [], []
    for sentence in _blocks(lines):
        words = _without_comments(sentence, part, width)
        wrong = next(((i, line) for i, line in words if len(part(line)) != width), None)
        if wrong:
            found = len(part(wrong[1]))
            many = "column" if found == 1 else "columns"
            faults.append(Fault(wrong[0], f"{found} {many} where the file has {width}"))
        elif words:
            cells = [part(line) for _, line in words]
            rows.append((words[0][0], ([one[0] for one in cells], [one[-1] for one in cells])))
    return of_rows(where, ("tokens", "ner_tags")[: min(width, 2)], rows, faults)


def _columns(data: bytes) -> tuple[Callable[[str], list[str]], Lines]:
    lines = list(enumerate(re.split(r"\r\n|\n|\r", decode(data)), start=1))
    first = next((line for _, line in lines if line.strip()), "")
    if "\t" in first:
        return (lambda line: line.strip("\r\n").split("\t")), lines
    return str.split, lines


def _blocks(lines: Iterable[tuple[int, str]]) -> Iterator[Lines]:
    """The lines between blank ones."""
    block: Lines = []
    for number, line in lines:
        if line.strip():
            block.append((number, line))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _without_comments(sentence: Lines, part: Callable[[str], list[str]], width: int) -> Lines:
    start = 0
    while start < len(sentence):
        line = sentence[start][1]
        comment = line.startswith("# ") and len(part(line)) != width
        if not comment and not line.startswith("-DOCSTART-"):
            break
        start += 1
    return sentence[start:]


def read_texts(data: bytes, where: str) -> Table:
    """Plain text, a row for each paragraph where blank lines part them, else for each line."""
    lines = list(enumerate(re.split(r"\r\n|\n|\r", decode(data).rstrip()), start=1))
    blank = sum(not line.strip() for _, line in lines)
    if blank < _BLANK_SHARE * len(lines):
        rows = [(number, (line.rstrip(),)) for number, line in lines if line.strip()]
    else:
        rows = [
            (block[0][0], ("\n".join(line.rstrip() for _, line in block),))
            for block in _blocks(lines)
        ]
    return of_rows(where, ("text",), rows)
