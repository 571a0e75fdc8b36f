"""Sound: digits that people speak. Models are pre-trained here on four speakers, and adapted to two
others; keywords that a network with real weights knows are no digits."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from pretraining import Drawn, trained
from row import Make, Row
from torch import Tensor

from trimtab.tasks import Task, lookup
from trimtab.tasks.task import UNLIMITED

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KNOWN, NEW = ("george", "jackson", "lucas", "nicolas"), ("theo", "yweweler")
RATE = 8000  # of the recordings
_FSDD = "fsdd_spoken_digits"


def spoken_words(shared: Path, out: Path) -> None:
    """Speech recognition: digits as words, by two people; of each digit the first 4 recordings of
    each are for the test, 2 for validation, 6 to learn from."""
    rows: dict[str, list[Path]] = {"test": [], "validation": [], "train": []}
    for who in NEW:
        for digit in range(10):
            files = sorted((shared / _FSDD).glob(f"{digit}_{who}_*.wav"))
            for i, file in enumerate(files):
                rows["test" if i < 4 else "validation" if i < 6 else "train"].append(file)
    (out / "recordings").mkdir()
    for split, files in rows.items():
        for file in files:
            shutil.copyfile(file, out / "recordings" / file.name)
        with (out / f"{split}.csv").open("w", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(["audio", "text", "label"])
            writer.writerows(
                (f"recordings/{file.name}", WORDS[int(file.name[0])], file.name[0])
                for file in files
            )


def aligned(shared: Path, out: Path) -> None:
    """wav2vec 2.0 with CTC, 0.14 million parameters, pre-trained on the words of four people."""
    torch.manual_seed(0)
    width = 64
    config = hf.Wav2Vec2Config(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        conv_dim=(width, width, width),
        conv_kernel=(40, 8, 4),
        conv_stride=(20, 4, 2),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        classifier_proj_size=width,
        mask_time_length=4,
    )
    extractor = hf.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    _pretrained(shared, out, [hf.Wav2Vec2ForCTC(config), extractor], steps=500)


def writing(shared: Path, out: Path) -> None:
    """Whisper, 0.3 million parameters, which spells; pre-trained on the words of four people."""
    torch.manual_seed(0)
    special = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    letters = [*sorted(set("".join(WORDS))), "Ġ"]
    vocabulary = {token: i for i, token in enumerate([*letters, "<|endoftext|>"])}
    tokenizer = hf.WhisperTokenizer(vocabulary, [])
    tokenizer.add_tokens([hf.AddedToken(one, special=True, normalized=False) for one in special])
    end, start = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(special[0])
    config = hf.WhisperConfig(
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        vocab_size=len(tokenizer),
        num_mel_bins=40,
        max_source_positions=100,
        max_target_positions=24,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    extractor = hf.WhisperFeatureExtractor(feature_size=40, chunk_length=2)
    parts = [hf.WhisperForConditionalGeneration(config), extractor, tokenizer]
    _pretrained(shared, out, parts, steps=300)


def _pretrained(shared: Path, out: Path, parts: Sequence[Any], *, steps: int) -> None:
    """Written as a checkpoint, and trained on the words of those who are known."""
    from datasets import Dataset

    for part in parts:
        part.save_pretrained(out)
    files = [one for who in KNOWN for one in sorted((shared / "data" / _FSDD).glob(f"*_{who}_*"))]
    words = [WORDS[int(file.name[0])] for file in files]
    rows = Dataset.from_dict({"audio": list(map(str, files)), "text": words})
    processor = pretrained(lookup("automatic-speech-recognition"), out, rows, steps=steps)
    processor.tokenizer.save_pretrained(out)


def pretrained(task: Task, folder: Path, rows: Any, *, steps: int) -> Any:
    """The model of this folder, trained whole on the rows by a task's own batches and loss; returns
    the task's processor."""
    torch.manual_seed(0)
    processor = task.processor(str(folder))
    labels = task.order(str(folder), task.labels(rows))
    model, _ = task.model(str(folder), labels, processor, torch.float32, False)
    examples = task.encode(rows, processor, labels, UNLIMITED).examples

    def loss(drawn: Drawn) -> Tensor:
        batch = task.collate([examples[i] for i in drawn(len(examples)).tolist()], processor)
        return task.loss(model, batch)[0]

    trained(model, steps, loss, batch=32, lr=3e-3, clip=1.0).save_pretrained(folder)
    return processor


DATA: dict[str, Make] = {"spoken_words": spoken_words}
MODELS: dict[str, Make] = {"wav2vec2-four-speakers": aligned, "whisper-four-speakers": writing}
_RATES = {"lora": 1e-2, "bitfit": 1e-2, "full": 1e-3}  # of models this small
ROWS = {
    "speech-ctc": Row(
        *("automatic-speech-recognition", "wav2vec2-four-speakers", "spoken_words"),
        options=("--batch-size", "16"),
        steps=100,
        rates=_RATES,
    ),
    "speech-whisper": Row(
        *("automatic-speech-recognition", "whisper-four-speakers", "spoken_words"),
        options=("--batch-size", "16"),
        steps=100,
        rates=_RATES,
    ),
    "keywords": Row(
        *("own.kwt:Keywords", "kwt1-speech-commands", "fsdd_spoken_digits"),
        options=("--batch-size", "16"),
        steps=150,
    ),
    "spoken-digits": Row(
        *("audio-classification", "wav2vec2-four-speakers", "spoken_words"),
        options=("--batch-size", "16"),
        steps=100,
        rates=_RATES,
    ),
}
