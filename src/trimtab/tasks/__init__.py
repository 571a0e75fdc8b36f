"""What each task asks of data and model, one file per task.

A task of one's own is named by where it is imported from: `--task package.module:Class`.
"""

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
    "recommendation": ("recommendation", "Recommendation"),
    "tabular-classification": ("tabular_classification", "TabularClassification"),
    "preference": ("preference", "Preference"),
    "question-answering": ("question_answering", "QuestionAnswering"),
    "sentence-similarity": ("sentence_similarity", "SentenceSimilarity"),
    "zero-shot-image-classification": (
        "zero_shot_image_classification",
        "ZeroShotImageClassification",
    ),
    "image-text-to-text": ("image_text_to_text", "ImageTextToText"),
    "audio-text-to-text": ("image_text_to_text", "AudioTextToText"),
    "image-feature-extraction": ("image_feature_extraction", "ImageFeatureExtraction"),
    "image-classification": ("image_classification", "ImageClassification"),
    "audio-classification": ("audio_classification", "AudioClassification"),
    "automatic-speech-recognition": (
        "automatic_speech_recognition",
        "AutomaticSpeechRecognition",
    ),
    "video-classification": ("video_classification", "VideoClassification"),
    "object-detection": ("object_detection", "ObjectDetection"),
    "unconditional-image-generation": (
        "unconditional_image_generation",
        "UnconditionalImageGeneration",
    ),
    "image-segmentation": ("image_segmentation", "ImageSegmentation"),
    "molecule-property": ("molecule_property", "MoleculeProperty"),
    "molecule-pair": ("molecule_pair", "MoleculePair"),
    "reinforcement-learning": ("reinforcement_learning", "ReinforcementLearning"),
    "time-series-forecasting": ("time_series_forecasting", "TimeSeriesForecasting"),
}


def lookup(name: str, options: Mapping[str, Any] = {}) -> Task:
    """The task of this name (the hub's task names, or `module:Class`), with its options."""
    task = _own(name) if ":" in name else _known(name)
    known = [field.name for field in dataclasses.fields(task)]
    for option in options:
        if option not in known:
            what = nearest(option, known) if known else "it has none"
            raise InputError(f"{name} has no option {option!r}; {what}")
    return task(**options)


def _known(name: str) -> type[Task]:
    if name not in TASKS:
        raise InputError(
            f"no task is called {name!r}; {nearest(name, TASKS)}. One of your own is named by its "
            "place: module:Class"
        )
    module, kind = TASKS[name]
    found: type[Task] = getattr(importlib.import_module(f"trimtab.tasks.{module}"), kind)
    return found


def _own(name: str) -> type[Task]:
    """A class of somebody's own module, which must be importable: installed, or on PYTHONPATH."""
    module, _, kind = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), kind, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and asks for what is not
        raise InputError(
            f"task {name!r}: there is no module {error.name!r}. Install it, or put its folder on "
            "PYTHONPATH"
        ) from None
    except ValueError:
        raise InputError(f"task {name!r} is not module:Class, as in mypackage.tasks:Mine") from None
    if not (isinstance(found, type) and issubclass(found, Task)):
        what = f"has no class {kind!r}" if found is None else f"has {kind!r}, which is no Task"
        raise InputError(
            f"task {name!r}: module {module!r} {what}. It needs a subclass of trimtab.tasks.Task"
        )
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise InputError(f"task {name!r} does not say {', '.join(missing)}: see trimtab.tasks.Task")
    return found
