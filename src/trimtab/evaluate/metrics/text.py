"""Metrics of generated text against one reference, or several (a list).

    exact match      the same text, but for white space around it
    SQuAD            exact match and F1 of words, both after lower case, without punctuation,
                     articles and repeated spaces, best over the references; without any reference
                     the right answer is none (Rajpurkar et al., "SQuAD", 2016, and "Know What You
                     Don't Know", 2018)
    BLEU             BP · exp(¼ Σₙ log pₙ), pₙ the share of right n-grams up to 4, BP = exp(min(0,
                     1 - reference length / length)) (Papineni et al. 2002); sacrebleu, 13a tokens
    chrF             F₂ of the mean precision and recall of character n-grams up to 6 (Popović
                     2015); sacrebleu
    ROUGE-1, -2, -L  F1 of words, of pairs of them, of the longest common subsequence, the mean
                     over examples (Lin 2004); rouge-score, with Porter's stemmer. Its words are
                     made of a to z and 0 to 9: other scripts have none.
    error rates      (substitutions + deletions + insertions) / (length of the reference), summed
                     over examples, of words, characters, phonemes; jiwer. Phonemes come as a list,
                     or with spaces between them. One reference.

BLEU and chrF go from 0 to 100; the others from 0 to 1, error rates also above.
"""

from __future__ import annotations

import collections
import functools
import re
import string
from typing import Any

import numpy as np

from trimtab.evaluate.metrics.metric import Column, Metric, library, ratio


def several(reference: Any) -> list[str]:
    return [reference] if isinstance(reference, str) else list(reference)


def same(prediction: str, reference: Any) -> float:
    return float(prediction.strip() in [one.strip() for one in several(reference)])


# Answers

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(answer: str) -> str:
    """An answer as SQuAD compares it."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split())


def answers_of(reference: Any) -> list[str]:
    """Without any, the empty answer."""
    return several(reference) or [""]


def squad_exact(prediction: str, reference: Any) -> float:
    return float(any(plain(prediction) == plain(one) for one in answers_of(reference)))


def squad_f1(prediction: str, reference: Any) -> float:
    return max(
        _words_f1(plain(prediction).split(), plain(o).split()) for o in answers_of(reference)
    )


def _words_f1(found: list[str], true: list[str]) -> float:
    if not found or not true:
        return float(found == true)
    common = (collections.Counter(found) & collections.Counter(true)).total()
    return 2 * common / (len(found) + len(true))


# BLEU and chrF


def _columns(references: Column) -> list[list[str | None]]:
    """As sacrebleu takes references: a list of first ones, one of second ones, …"""
    rows = [several(reference) for reference in references]
    most = max(map(len, rows))
    return [[row[i] if i < len(row) else None for row in rows] for i in range(most)]


@functools.cache
def _sacrebleu(name: str) -> Any:
    return getattr(library("sacrebleu"), name)()


def _corpus(name: str) -> dict[str, Any]:
    """The value, the sums and what is made of them, all by sacrebleu's own functions: those by
    which its tests of significance resample."""

    def compute(predictions: Column, references: Column) -> float:
        return _sacrebleu(name).corpus_score(list(predictions), _columns(references)).score

    def sums(predictions: Column, references: Column) -> np.ndarray:
        scorer = _sacrebleu(name)
        return np.array(
            scorer._extract_corpus_statistics(list(predictions), _columns(references)), dtype=float
        )

    def of(totals: np.ndarray) -> np.ndarray:
        return np.apply_along_axis(_score, -1, totals)

    def _score(total: np.ndarray) -> float:
        return _sacrebleu(name)._compute_score_from_stats([round(x) for x in total]).score

    return {"compute": compute, "sums": sums, "of": of}


def bleu_of_one(prediction: str, reference: Any) -> float:
    """Of the orders of n-grams that the sentence has."""
    return library("sacrebleu").sentence_bleu(prediction, several(reference)).score


def chrf_of_one(prediction: str, reference: Any) -> float:
    return library("sacrebleu").sentence_chrf(prediction, several(reference)).score


# ROUGE


@functools.cache
def _scorer(kind: str) -> Any:
    return library("rouge_score.rouge_scorer").RougeScorer([kind], use_stemmer=True)


def _rouge(kind: str) -> Metric:
    def each(prediction: str, reference: Any) -> float:
        return _scorer(kind).score_multi(several(reference), prediction)[kind].fmeasure

    return Metric(
        name=kind,
        description=f"ROUGE-{kind[-1]}, F1, mean over examples (Lin 2004; rouge-score, stemmed)",
        each=each,
        mean=True,
    )


# Error rates


def _line(tokens: Any) -> str:
    return tokens if isinstance(tokens, str) else " ".join(tokens)


def _error_rate(name: str, unit: str, process: str) -> Metric:
    def counted(predictions: Column, references: Column) -> tuple[int, int, float]:
        """Errors, length of the references, and jiwer's rate."""
        true, found = [_line(one) for one in references], [_line(one) for one in predictions]
        out = getattr(library("jiwer"), process)(true, found)
        wrong = out.substitutions + out.deletions
        rate = out.cer if process == "process_characters" else out.wer
        return wrong + out.insertions, wrong + out.hits, rate

    def compute(predictions: Column, references: Column) -> float:
        _, length, rate = counted(predictions, references)
        return rate if length else np.nan

    def sums(predictions: Column, references: Column) -> np.ndarray:
        pairs = zip(predictions, references, strict=True)
        return np.array([counted([found], [true])[:2] for found, true in pairs], dtype=float)

    def each(prediction: Any, reference: Any) -> float:
        errors, length, _ = counted([prediction], [reference])
        return errors / max(length, 1)

    return Metric(
        name=name,
        description=f"edits over {unit} of the reference (jiwer)",
        compute=compute,
        each=each,
        sums=sums,
        of=ratio,
        higher=False,
    )


TEXT = (
    Metric(name="exact_match", description="the same text", each=same, mean=True),
    Metric(
        name="squad_exact_match",
        description="the same answer, without case, punctuation and articles (SQuAD)",
        each=squad_exact,
        mean=True,
    ),
    Metric(
        name="squad_f1",
        description="F1 of an answer's words, without case, punctuation and articles (SQuAD)",
        each=squad_f1,
        mean=True,
    ),
    Metric(
        name="bleu",
        description="BLEU, 0 to 100 (Papineni et al. 2002; sacrebleu, 13a tokens)",
        each=bleu_of_one,
        unit="points",
        **_corpus("BLEU"),
    ),
    Metric(
        name="chrf",
        description="chrF2, 0 to 100 (Popović 2015; sacrebleu)",
        each=chrf_of_one,
        unit="points",
        **_corpus("CHRF"),
    ),
    *(_rouge(kind) for kind in ("rouge1", "rouge2", "rougeL")),
    _error_rate("word_error_rate", "words", "process_words"),
    _error_rate("phoneme_error_rate", "phonemes", "process_words"),
    _error_rate("character_error_rate", "characters", "process_characters"),
)
