"""Small pictures and sounds for the tests, drawn and played here."""

import io

import numpy as np
import soundfile
from PIL import Image


def png(path, value=0, size=(8, 6), mode="RGB"):
    """A picture in which no two of different `value` are alike; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn(value, size, mode).save(path)
    return path


def drawn(value=0, size=(8, 6), mode="RGB"):
    width, height = size
    noise = np.random.default_rng(value).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def png_bytes(value=0, size=(8, 6)):
    buffer = io.BytesIO()
    drawn(value, size).save(buffer, "PNG")
    return buffer.getvalue()


def wav(path, pitch=440.0, rate=8000, seconds=0.2, channels=1, loud=0.5):
    """A tone; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(rate * seconds)) / rate
    wave = loud * np.sin(2 * np.pi * pitch * time)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate)
    return path
