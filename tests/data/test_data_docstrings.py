"""The demo's data: real, balanced enough, and with no module in two splits."""

import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.data import docstrings as module
from trimtab.data.docstrings import docstrings


@pytest.fixture(scope="module")
def splits():
    return docstrings()


def parts(splits):
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def test_every_split_has_every_label_and_roughly_its_share(splits):
    labels = [set(part["label"][:]) for part in parts(splits).values()]
    assert labels[0] == labels[1] == labels[2]
    assert 2 <= len(labels[0]) <= module.LABELS
    total = sum(map(len, parts(splits).values()))
    for name, part in parts(splits).items():
        assert abs(len(part) / total - module.SHARES[name]) < 0.08


def test_no_module_is_in_two_splits(splits):
    packages = module._packages(Path(sysconfig.get_path("stdlib")))
    origin = {t: m for modules in packages.values() for m, texts in modules.items() for t in texts}
    found = {name: {origin[t] for t in part["text"][:]} for name, part in parts(splits).items()}
    assert not found["train"] & found["validation"]
    assert not found["train"] & found["test"]
    assert not found["validation"] & found["test"]


def test_texts_are_distinct_clean_and_of_bounded_length(splits):
    texts = [text for part in parts(splits).values() for text in part["text"][:]]
    assert len(set(texts)) == len(texts) <= module.EXAMPLES
    assert all(module.SHORTEST <= len(text) <= module.LONGEST for text in texts)
    assert all(text == " ".join(text.split()) for text in texts)


def test_the_notes_say_what_was_capped(splits):
    counts = Counter(label for part in parts(splits).values() for label in part["label"][:])
    largest, cap = max(counts.values()), [n for n in splits.notes if n.startswith("Capped at ")]
    assert cap == [] or cap[0].startswith(f"Capped at {largest} examples")
    assert f"{sum(counts.values()):,} docstrings of {len(counts)} packages" in splits.notes[0]


def test_the_seed_decides(splits):
    assert docstrings().train["text"][:] == splits.train["text"][:]
    assert docstrings(1).train["text"][:] != splits.train["text"][:]


class TestSmallLibrary:
    """A library of two packages, one of which would end the process if it were imported."""

    SOURCE = '''
"""The module {name}, which explains itself here.

And goes on, at a length that is enough to be a whole paragraph of its own, more or less."""
raise SystemExit("imported")
try:
    class Thing:
        """A thing of   {name}, spread
        over lines, and long enough to stand without the paragraph that follows it below.

        Not this."""
        async def short(self): "Too short."
        def same(self): "A sentence that all of the modules share."
except Exception:
    def fallback(): "A fallback of {name}, in a handler."
'''

    @pytest.fixture
    def library(self, tmp_path, monkeypatch):
        for package in ("alpha", "beta", "_private"):
            for path in ("__init__", "one", "two", "tests/many"):
                file = tmp_path / package / f"{path}.py"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(self.SOURCE.format(name=f"{package}.{path}"))
            (tmp_path / package / "broken.py").write_text("def (:\n")
        monkeypatch.setattr("sys.stdlib_module_names", {"alpha", "beta", "_private", "sys"})
        monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
        return tmp_path

    def test_is_parsed_and_never_imported(self, library):
        splits = docstrings()
        texts = {text for part in parts(splits).values() for text in part["text"][:]}
        for name in (f"{p}.{m}" for p in ("alpha", "beta") for m in ("__init__", "one", "two")):
            assert f"A fallback of {name}, in a handler." in texts
            thing = f"A thing of {name}, spread over lines, and long enough to stand without"
            assert any(t.startswith(thing) and t.endswith("below.") for t in texts)
            assert any(t.startswith(f"The module {name}, ") and "goes on" in t for t in texts)
        assert sum("share" in text for text in texts) == 1
        assert len(texts) == 6 * 3 + 1

    def test_each_split_has_one_of_three_modules(self, library):
        splits = docstrings()
        for part in parts(splits).values():
            assert set(part["label"][:]) == {"alpha", "beta"}

    def test_without_sources_is_an_error(self, tmp_path, monkeypatch):
        monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
        with pytest.raises(InputError, match="without the sources"):
            docstrings()
