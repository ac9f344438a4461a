"""Sound without a framework: files, spectrograms, an instrument that plays notes, augmentation."""

from __future__ import annotations

from kmidi_mlx.audio.files import read_audio, resample, write_wav
from kmidi_mlx.audio.instrument import Instrument, load_instrument, piano
from kmidi_mlx.audio.mel import (
    MelSettings,
    MelStream,
    compress,
    expand,
    mel_bands,
    mel_spectrogram,
)
from kmidi_mlx.audio.sampler import Sampler, render

__all__ = [
    "Instrument",
    "MelSettings",
    "MelStream",
    "Sampler",
    "compress",
    "expand",
    "load_instrument",
    "mel_bands",
    "mel_spectrogram",
    "piano",
    "read_audio",
    "render",
    "resample",
    "write_wav",
]
