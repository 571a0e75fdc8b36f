"""What each task asks of data and model, one file per task."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from trimtab.core.errors import InputError, nearest
from trimtab.tasks.task import Task as Task

# name -> (module, class): a task's libraries are read when it is asked for.
TASKS = {
    "text-classification": ("text_classification", "TextClassification"),
    "text-generation": ("text_generation", "TextGeneration"),
    "text2text-generation": ("text2text_generation", "Text2TextGeneration"),
    "token-classification": ("token_classification", "TokenClassification"),
    "question-answering": ("question_answering", "QuestionAnswering"),
    "sentence-similarity": ("sentence_similarity", "SentenceSimilarity"),
    "image-classification": ("image_classification", "ImageClassification"),
    "audio-classification": ("audio_classification", "AudioClassification"),
    "object-detection": ("object_detection", "ObjectDetection"),
    "image-segmentation": ("image_segmentation", "ImageSegmentation"),
}


def lookup(name: str, options: Mapping[str, Any] = {}) -> Task:
    """The task of this name (the hub's task names), with its options."""
    if name not in TASKS:
        raise InputError(f"no task is called {name!r}; {nearest(name, TASKS)}")
    module, kind = TASKS[name]
    task: type[Task] = getattr(importlib.import_module(f"trimtab.tasks.{module}"), kind)
    known = [field.name for field in dataclasses.fields(task)]
    for option in options:
        if option not in known:
            what = nearest(option, known) if known else "it has none"
            raise InputError(f"{name} has no option {option!r}; {what}")
    return task(**options)
