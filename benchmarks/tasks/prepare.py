"""The real data that tasks are tried on, in files that Trimtab reads.

    python benchmarks/tasks/prepare.py ../shared/data OUT [NAME …]

Each data set comes in a form of its own; what is made of it lies in OUT/NAME, a folder of splits.
Where the data have official splits these are kept, else they are made here and said below.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def adult(source: Path, out: Path) -> None:
    """Text classification: a person's record as a sentence, and whether the income is above 50K;
    `sex` and `race` stay beside it, for slices."""
    for split, name in (("train", "adult.data"), ("test", "adult.test")):
        rows = list(csv.DictReader(_lines(source / name), skipinitialspace=True))
        _write_csv(out / f"{split}.csv", map(_person, rows))


def _person(row: Row) -> Row:
    facts = [f"{key.replace('-', ' ')} {value}" for key, value in row.items() if key != "Y"]
    label = row["Y"].strip().rstrip(".")
    return {"text": ", ".join(facts), "label": label, "sex": row["sex"], "race": row["race"]}


def bccd_detection(source: Path, out: Path) -> None:
    """Object detection: blood cells, in VOC's layout; the lists name only images that are here."""
    for folder in ("Annotations", "JPEGImages"):
        copied(source / folder, out / folder)
    here = {path.stem for path in (source / "Annotations").glob("*.xml")}
    for name in ("train", "val", "test"):
        listed = _lines(source / "ImageSets" / "Main" / f"{name}.txt")
        _write(
            out / "ImageSets" / "Main" / f"{name}.txt",
            "".join(f"{stem}\n" for stem in map(str.strip, listed) if stem in here),
        )


def cmudict(source: Path, out: Path) -> None:
    """Text to text: a word, and how it is spoken."""
    for split in SHARES:
        rows = csv.DictReader(
            _lines(source / f"{split}.tsv"), delimiter="\t", quoting=csv.QUOTE_NONE
        )
        pairs = ({"source": row["word"], "target": row["phonemes"]} for row in rows)
        write_json_lines(out / f"{split}.jsonl", pairs)


def codexglue_java_cs(source: Path, out: Path) -> None:
    """Text to text: a Java method, and the same in C#."""
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        sides = (_lines(source / f"{name}.java-cs.txt.{side}") for side in ("java", "cs"))
        pairs = (
            {"source": java.strip(), "target": cs.strip()} for java, cs in zip(*sides, strict=True)
        )
        write_json_lines(out / f"{split}.jsonl", pairs)


def e2e_nlg(source: Path, out: Path) -> None:
    """Text to text: facts, and a sentence that tells them. The large training file is not here:
    what was for development is trained on."""
    for split, name in (("train", "devset.csv"), ("test", "testset_w_refs.csv")):
        rows = csv.DictReader(_lines(source / name))
        pairs = ({"source": row["mr"], "target": row["ref"]} for row in rows)
        write_json_lines(out / f"{split}.jsonl", pairs)


def ett(source: Path, out: Path, past: int = 336, future: int = 96, stride: int = 24) -> None:
    """Time series: hours of a transformer's oil temperature and loads, one of them a row; the first
    12 months to train on, then 4, then 4. No window reaches into another split's `future`."""
    rows = list(csv.DictReader(_lines(source / "ETTh1.csv")))
    month = 30 * 24
    ends = {"train": (0, 12), "validation": (12, 16), "test": (16, 20)}
    for split, (first, last) in ends.items():
        starts = range(max(0, first * month - past), last * month - past - future + 1, stride)
        write_json_lines(
            out / f"{split}.jsonl",
            (
                _window([float(row[name]) for row in rows[at : at + past + future]], name, past)
                for name in rows[0]
                if name != "date"
                for at in starts
            ),
        )


def _window(values: list[float], name: str, past: int) -> Row:
    return {"series": name, "past": values[:past], "future": values[past:]}


def fsdd_spoken_digits(source: Path, out: Path) -> None:
    """Audio classification: digits that six people speak; each speaker's first two recordings of a
    digit are for the test, the next two for validation."""
    for path in sorted(source.glob("*.wav")):
        digit, _, index = path.stem.split("_")
        split = "test" if int(index) < 2 else "validation" if int(index) < 4 else "train"
        target = out / split / digit / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def isbi_membrane_segmentation(source: Path, out: Path) -> None:
    """Image segmentation: cell membranes, 1 within a cell. The 30 images are slices of one stack,
    alike where they touch, so that splits are blocks of it: 20, 4 and 6."""
    from PIL import Image

    for number in range(30):
        split = "train" if number < 20 else "validation" if number < 24 else "test"
        for folder, name in (("image", "images"), ("label", "masks")):
            target = out / split / name / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(source / folder / f"{number}.png") as picture:
                grey = picture.convert("L")
            if name == "masks":
                grey = grey.point([int(value > 127) for value in range(256)])
            grey.save(target)


def mnist_t10k(source: Path, out: Path) -> None:
    """Image classification: the 10,000 digits of MNIST's test set, in their order 8,000, 1,000 and
    1,000; as PNG within Parquet."""
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    pixels, (n, height, width) = _idx(source / "t10k-images-idx3-ubyte.gz")
    labels, _ = _idx(source / "t10k-labels-idx1-ubyte.gz")
    rows = []
    for i in range(n):
        picture = Image.frombytes(
            "L", (width, height), pixels[i * height * width :][: height * width]
        )
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": f"{i}.png"}
        rows.append({"image": image, "label": str(labels[i])})
    out.mkdir(parents=True, exist_ok=True)
    for split, (first, last) in _ends(n).items():
        table = pyarrow.Table.from_pylist(rows[first:last])
        pyarrow.parquet.write_table(table, out / f"{split}.parquet")


def _idx(path: Path) -> tuple[bytes, tuple[int, ...]]:
    """The bytes of an IDX file and the sizes of its axes."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    return data[4 + 4 * axes :], struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])


def delaney(source: Path, out: Path) -> None:
    """Text regression: a molecule in SMILES, and the logarithm of its solubility."""
    rows = csv.DictReader(_lines(source.parent / "molecules" / "delaney-processed.csv"))
    solved = "measured log solubility in mols per litre"
    pairs = ({"text": row["smiles"].strip(), "score": row[solved]} for row in rows)
    _write_splits(out, list(pairs))


def tox21(source: Path, out: Path) -> None:
    """Text with several labels: a molecule, and the assays in which it is active. Molecules that
    some assay did not measure are left out: nobody knows whether they have its label."""
    data = gzip.decompress((source.parent / "molecules" / "tox21.csv.gz").read_bytes())
    rows = []
    for row in csv.DictReader(io.StringIO(data.decode())):
        assays = {key: value for key, value in row.items() if key not in ("mol_id", "smiles")}
        if all(assays.values()):
            active = ";".join(name for name, value in assays.items() if float(value))
            rows.append({"text": row["smiles"], "labels": active})
    _write_splits(out, rows)


def scitldr(source: Path, out: Path) -> None:
    """Text to text: a paper's abstract, and the first of its one-sentence summaries."""
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        papers = map(json.loads, _lines(source / f"{name}.jsonl"))
        pairs = ({"source": " ".join(p["source"]), "target": p["target"][0]} for p in papers)
        write_json_lines(out / f"{split}.jsonl", pairs)


def self_instruct(source: Path, out: Path) -> None:
    """Chats: an instruction with its input, and the answer that a person wrote. The instructions
    written around users' programs are the test."""
    for split, name in (("train", "seed_tasks"), ("test", "user_oriented_instructions")):
        tasks = map(json.loads, _lines(source / f"{name}.jsonl"))
        chats = (chat for task in tasks for chat in _chats(task))
        write_json_lines(out / f"{split}.jsonl", chats)


def _chats(task: Row) -> Iterator[Row]:
    for one in task["instances"]:
        asked = "\n\n".join(filter(None, (task["instruction"], one["input"])))
        yield {
            "messages": [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": one["output"]},
            ]
        }


def tinyshakespeare(source: Path, out: Path) -> None:
    """Text generation: speeches, in their order 80, 10 and 10 of a hundred."""
    speeches = re.split(r"\n\n+", (source / "input.txt").read_text("utf8").strip())
    for split, (first, last) in _ends(len(speeches)).items():
        _write(out / f"{split}.txt", "\n\n".join(speeches[first:last]) + "\n")


def wikitext2(source: Path, out: Path) -> None:
    """Text generation: the large training file is not here: what was for validation is trained on,
    and the first half of the test is validation."""
    _write(out / "train.txt", (source / "valid.txt").read_text("utf8"))
    # an article begins with a title of one equation sign on each side
    articles = re.split(r"(?m)^(?= = [^=].* = $)", (source / "test.txt").read_text("utf8"))
    half = len(articles) // 2
    _write(out / "validation.txt", "".join(articles[:half]))
    _write(out / "test.txt", "".join(articles[half:]))


def copied(source: Path, out: Path) -> None:
    """Files that are read as they are."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file():
            shutil.copyfile(path, out / path.name)


PREPARE: dict[str, Callable[[Path, Path], None]] = {
    **{one.__name__: one for one in (adult, bccd_detection, cmudict, codexglue_java_cs, e2e_nlg)},
    **{one.__name__: one for one in (ett, fsdd_spoken_digits, isbi_membrane_segmentation)},
    **{one.__name__: one for one in (mnist_t10k, delaney, tox21, scitldr, self_instruct)},
    **{one.__name__: one for one in (tinyshakespeare, wikitext2)},
    **dict.fromkeys(("banking77", "gsm8k", "rotten_tomatoes", "snips_intents"), copied),
    **dict.fromkeys(("subjectivity", "wnut17"), copied),
}


# Reading and writing


def _lines(path: Path) -> list[str]:
    """Split at line feeds alone: code and speech have other separators within a line."""
    return path.read_text("utf8").rstrip("\n").split("\n")


def _ends(n: int) -> dict[str, tuple[int, int]]:
    """Where each split begins and ends among n rows in their order."""
    first, held = int(n * SHARES["train"]), int(n * SHARES["validation"])
    return {
        "train": (0, first),
        "validation": (first, first + held),
        "test": (first + held, n),
    }


def _write_splits(out: Path, rows: list[Row]) -> None:
    random.Random(0).shuffle(rows)
    for split, (first, last) in _ends(len(rows)).items():
        _write_csv(out / f"{split}.csv", rows[first:last])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf8", newline="")


def write_json_lines(path: Path, rows: Iterable[Row]) -> None:
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    given = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(given[0]))
    writer.writeheader()
    writer.writerows(given)
    _write(path, text.getvalue())


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2:
        print(__doc__)
        return 2
    source, out, *names = arguments
    unknown = set(names) - set(PREPARE)
    if unknown:
        print(f"no data set is called {sorted(unknown)}; known: {', '.join(PREPARE)}")
        return 2
    for name in names or PREPARE:
        PREPARE[name](Path(source) / name, Path(out) / name)
        print(Path(out) / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
