"""AuT-Few: what is retrieved and found, its choice by cross-validation, and the whole of it."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from language_models import EXAMPLES, model, tokenizer
from torch import Tensor

import trimtab
from trimtab.recipes import aut_few, t_few
from trimtab.recipes.aut_few import ask, fit, poll, split
from trimtab.recipes.choices import Example
from trimtab.recipes.descriptions import STOPWORDS, answer_words, topic_words
from trimtab.recipes.retrieval import COLLECTION, Embed, minilm, places, retrieve

FILMS = ["the acting in this film is superb", "a dull plot, the worst movie of the year"]
BANK = ["why was my card payment declined", "how do I transfer money to another account"]
PLAIN = ("{0} it is", "text {0} and it was", "so {0} is", "{0} was not {1}")


@pytest.fixture(scope="module")
def embed() -> Embed:
    return minilm()


def letters(texts: Any) -> Tensor:
    """Texts by how often they have each letter: similar where they share words."""
    counts = [[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts]
    return torch.nn.functional.normalize(torch.tensor(counts).float() + 1e-3, dim=-1)


def test_embeddings_do_not_depend_on_their_batch(embed: Embed) -> None:
    both = embed([FILMS[0], BANK[0] * 3])
    torch.testing.assert_close(both[:1], embed(FILMS[:1]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.norm(dim=-1), torch.ones(2))


def test_instructions_near_to_the_examples_are_found(embed: Embed) -> None:
    films = retrieve([(one,) for one in FILMS], embed, top=3)
    bank = retrieve([(one,) for one in BANK], embed, top=3)
    assert "film" in films[0]
    assert "bank" in bank[0]
    assert len(set(films)) == 3
    assert all(places(one) == 1 for one in films)


def test_names_of_fields_are_asked_for_where_they_tell(embed: Embed) -> None:
    rows = [("a man sleeps", "somebody rests")]
    found = retrieve(rows, embed, fields=("premise", "hypothesis"), top=2)
    assert found[0].startswith("Premise: {0}\nHypothesis: {1}")
    assert retrieve(rows, embed, fields=("claim", "evidence"), top=1)[0].startswith("Claim")


def test_the_collection_is_sound() -> None:
    assert len(set(COLLECTION)) == len(COLLECTION)
    assert {places(one) for one in COLLECTION} == {1, 2}
    with pytest.raises(trimtab.InputError, match="names its fields"):
        places("Text: {text}")
    with pytest.raises(trimtab.InputError, match="names its fields"):
        places("Text: {1}")
    with pytest.raises(trimtab.InputError, match="has 3 fields"):
        retrieve([("a", "b", "c")], letters)


def test_topic_words(embed: Embed) -> None:
    labels = [0, 0, 1, 1]
    found = topic_words([*FILMS, *BANK], labels, 2, embed)
    assert found[0] in {"film", "movie", "acting", "plot"}
    assert found[1] in {"payment", "card", "account", "money", "transfer"}
    assert not STOPWORDS & set(found)


def test_topic_words_of_classes_that_share_theirs_differ() -> None:
    found = topic_words(["red blue", "red blue", "12 %"], [0, 1, 2], 3, letters)
    assert set(found[:2]) == {"red", "blue"}
    assert found[2] == "class 3"  # in which there is no word


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2"])
def test_answer_words_are_what_the_model_says(name: str) -> None:
    """A model that was taught to answer in words is found to use them."""
    one, made = model(name), tokenizer(name)
    taught = [Example(e.text, ("fine", "poor"), i % 2) for i, e in enumerate(EXAMPLES)]
    trimtab.attach(one, trimtab.LoRA(rank=4))
    adamw = torch.optim.AdamW(trimtab.parameters(one), lr=0.02)
    t_few.train(one, made, taught, steps=30, warmup=0, optimizer=adamw)
    prompts, labels = [e.text for e in taught], [0, 1, 0]
    assert answer_words(one, made, prompts, labels, 2) == ["fine", "poor"]
    assert answer_words(one, made, prompts, [1, 0, 1], 2, batch_size=2) == ["poor", "fine"]
    assert len(set(answer_words(one, made, prompts, [0, 1, 2], 3, top=1))) == 3


def test_folds_hold_every_class() -> None:
    labels = [0, 1] * 6 + [2] * 6
    parts = split(labels, 3, seed=1)
    assert sorted(i for part in parts for i in part) == list(range(18))
    assert all([labels[i] for i in part].count(c) == 2 for part in parts for c in range(3))
    assert parts == split(labels, 3, seed=1) != split(labels, 3, seed=2)


def test_votes_count_before_probabilities() -> None:
    """Two instructions lean to one class, a third is sure of the other."""
    scores = torch.tensor([[[0.1, 0.0], [0.1, 0.0], [0.0, 9.0]]])
    votes, likely = poll(scores)
    assert votes.tolist() == [[2, 1]]
    assert likely[0, 1] > likely[0, 0]
    assert likely.sum().item() == pytest.approx(1.0)
    assert aut_few._most(votes, likely).tolist() == [0]
    assert aut_few._most(*poll(scores[:, 1:])).tolist() == [1]  # a tie of votes


TEXTS = ["red film", "the red one", "very red", "blue film", "the blue one", "very blue"]
LABELS = [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_the_whole(name: str) -> None:
    one, made = model(name), tokenizer(name)
    before = {key: value.clone() for key, value in one.state_dict().items()}
    found = fit(
        one,
        made,
        TEXTS,
        LABELS,
        names=("good", "poor"),
        embed=letters,
        collection=PLAIN,
        top=2,
        steps=25,
        batch_size=6,
        warmup=2,
        lr=0.05,
    )
    assert set(found.tried) == {"names", "topics", "answers"}
    best = max(found.tried.values())
    equal = [kind for kind, trial in found.tried.items() if trial == best]
    assert found.descriptions in [described(one, made, kind) for kind in equal]
    assert len(found.instructions) == 2
    assert found.predict(TEXTS) == LABELS
    summary = trimtab.summary(one)
    assert (summary.name, summary.methods) == ("aut-few", ("ia3",))  # no fold is left
    trimtab.detach(one)
    cases.assert_same_state(one, before)


def described(one: Any, made: Any, kind: str) -> tuple[str, ...]:
    """What `fit` finds on the base."""
    if kind == "names":
        return ("good", "poor")
    with trimtab.using(one, None):
        rows = aut_few.rows_of(TEXTS)
        instructions = retrieve(rows, letters, collection=PLAIN, top=2)
        return aut_few._candidates(one, made, rows, LABELS, 2, instructions, letters, None)[kind]


def test_two_fields() -> None:
    one, made = model("t5"), tokenizer("t5")
    pairs = [("red", "red"), ("blue", "blue"), ("red", "blue"), ("blue", "red")]
    found = fit(
        one,
        made,
        pairs,
        [0, 0, 1, 1],
        embed=letters,
        collection=PLAIN,
        folds=2,
        steps=2,
        method=trimtab.LoRA(rank=2),
        name="pairs",
    )
    assert found.instructions == PLAIN[3:]
    assert set(found.tried) == {"topics", "answers"}
    assert trimtab.summary(one).methods == ("lora",)
    asked = ask([pairs[2]], found.instructions, found.descriptions)
    assert [example.text for example in asked] == ["red was not blue"]


def test_what_cannot_be_fitted() -> None:
    one, made = model("gpt2"), tokenizer("gpt2")
    for texts, labels, options, why in [
        (TEXTS, LABELS[:2], {}, "6 texts and 2 labels"),
        (TEXTS, [0, 0, 0, 2, 2, 2], {}, "class 1 of 3 has no example"),
        (TEXTS, [0] * 6, {}, "at least two classes"),
        (TEXTS, LABELS, {"names": ("good", "good")}, "the same name"),
        (TEXTS, LABELS, {"folds": 7}, "folds are from 2"),
        (TEXTS, ["a", "b"] * 3, {}, "its class's number, from 0, and not 'a'"),
        (TEXTS, LABELS, {"top": 0}, "at least 1, not 0"),
        ([*TEXTS[:5], ("a", "b")], LABELS, {}, "the same fields"),
    ]:
        with pytest.raises(trimtab.InputError, match=why):
            fit(one, made, texts, labels, embed=letters, collection=PLAIN, **options)
    with pytest.raises(trimtab.InputError, match="steps and batch_size"):
        fit(one, made, TEXTS, LABELS, embed=letters, collection=PLAIN, steps=0)
    with pytest.raises(trimtab.StateError, match="no adapter"):
        trimtab.summary(one)  # nothing is left of the attempts
    trimtab.attach(one, trimtab.IA3(), name="taken")
    with pytest.raises(trimtab.InputError, match="already carries an adapter 'taken'"):
        fit(one, made, TEXTS, LABELS, name="taken", embed=lambda texts: pytest.fail("too late"))
