"""Every option of kmidi, once: name, unit, range, default.

A run is described by one frozen dataclass per model, made of sections. `kmidi_mlx.config_file`
reads them from YAML files and `--set section.option=value`; nothing else in the project holds a
default. A section checks itself when it is made, so an impossible value cannot exist.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.adapter_config import AdapterConfig
from kmidi_mlx.config_section import ConfigError, Section, option
from kmidi_mlx.emotion import LABELS


@dataclass(frozen=True)
class MidiTransformerConfig(Section):
    """Sizes of EmotionMIDITransformer (section `model`)."""

    vocab_size: int = option(388, "number of events the model can write", low=388, high=388)
    hidden_dim: int = option(384, "width of the residual stream", low=64, high=8192)
    num_layers: int = option(8, "number of decoder blocks", low=1, high=128)
    num_heads: int = option(6, "attention heads; head_dim is hidden_dim / num_heads", low=1)
    ffn_dim: int = option(1792, "width of the SwiGLU feed-forward layer", low=8)
    context_length: int = option(2048, "events the model looks back on (ring size)", low=16)
    emotion_dim: int = option(64, "length of the emotion vector", low=64, high=64)
    num_chords: int = option(110, "chord ids of `kmidi_mlx.music.chords`", low=1)
    num_keys: int = option(25, "key ids of `kmidi_mlx.music.chords`", low=1)
    emotion_tokens: int = option(8, "context tokens made from the emotion vector", low=1, high=64)
    cross_attention_layers: tuple[int, ...] = option(
        (0, 2, 4, 6), "blocks that attend to the emotion context", low=0
    )
    rope_base: float = option(10000.0, "base of the rotary embedding's wavelengths", low=1.0)
    norm_eps: float = option(1e-5, "epsilon of RMSNorm", low=1e-12, high=1e-2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_dim % self.num_heads:
            raise ConfigError(
                "num_heads", f"{self.num_heads} heads do not divide hidden_dim {self.hidden_dim}"
            )
        if self.head_dim % 2:
            raise ConfigError(
                "num_heads",
                f"head_dim {self.head_dim} (hidden_dim / num_heads) is odd; the rotary embedding "
                "needs pairs",
            )
        if list(self.cross_attention_layers) != sorted(set(self.cross_attention_layers)):
            raise ConfigError("cross_attention_layers", "must be rising and without repeats")
        if any(layer >= self.num_layers for layer in self.cross_attention_layers):
            raise ConfigError(
                "cross_attention_layers",
                f"names layer {max(self.cross_attention_layers)} but num_layers is "
                f"{self.num_layers} and layers count from 0",
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_dim // self.num_heads

    @property
    def rope_periods(self) -> NDArray[np.float32]:
        """Events in which each pair of a head turns by one radian, `(head_dim / 2,)`.

        Frameworks and runtimes get these numbers instead of making their own from the base: a
        last bit that differs here is a thousandth of a radian two thousand events on.
        """
        half = self.head_dim // 2
        with np.errstate(over="ignore"):  # an infinite period does not turn
            return (self.rope_base ** (np.arange(half) / half)).astype(np.float32)


@dataclass(frozen=True)
class MidiDataConfig(Section):
    """Where the prepared music is and how windows are drawn from it (section `data`)."""

    path: str = option("data/midi", "folder made by `prepare midi`")
    sequence_length: int = option(1024, "events in one training window", low=8, high=65536)
    transpose_semitones: int = option(5, "transpose by -n..n semitones", low=0, high=11)
    stretch: float = option(0.05, "stretch time by 1-x..1+x", low=0.0, high=0.5)
    velocity_scale: float = option(0.1, "scale velocities by 1-x..1+x", low=0.0, high=0.5)
    start_probability: float = option(
        0.1, "share of windows that start at the start of a piece", low=0.0, high=1.0
    )
    emotion_dropout: float = option(
        0.1, "share of windows without any condition, for guidance", low=0.0, high=1.0
    )
    harmony_dropout: float = option(
        0.3, "share of windows without chords and key", low=0.0, high=1.0
    )
    max_chords: int = option(48, "chord segments kept in one window", low=1, high=1024)
    prefetch: int = option(4, "batches made ahead by a background thread", low=0, high=64)


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """What changes the weights (section `optimizer`)."""

    name: str = option(
        "adamw",
        "adamw for all, or muon for matrices and adamw for the rest",
        choices=("adamw", "muon"),
    )
    learning_rate: float = option(3e-4, "peak learning rate", low=0.0, high=1.0)
    beta1: float = option(0.9, "decay of the mean gradient", low=0.0, high=0.9999)
    beta2: float = option(0.95, "decay of the mean squared gradient", low=0.0, high=0.999999)
    eps: float = option(1e-8, "added to the root of the squared gradient", low=1e-16, high=1e-2)
    momentum: float = option(0.95, "decay of muon's mean gradient", low=0.0, high=0.9999)
    weight_decay: float = option(0.1, "decoupled decay of matrices", low=0.0, high=10.0)
    clip_norm: float = option(1.0, "largest global gradient norm", low=1e-6)
    warmup_steps: int = option(500, "steps of linear warm-up", low=0)
    warmup_epochs: float = option(
        0.0, "epochs of linear warm-up, instead of warmup_steps; 0: those", low=0.0
    )
    final_lr_fraction: float = option(
        0.1, "learning rate at the end as a share of the peak (cosine)", low=0.0, high=1.0
    )
    restarts: int = option(0, "times that the cosine begins at the peak again", low=0, high=100)


@dataclass(frozen=True)
class TrainingConfig(Section):
    """The training loop (section `training`)."""

    batch_size: int = option(64, "windows in one forward pass", low=1)
    grad_accum_steps: int = option(1, "forward passes per optimiser step", low=1)
    max_steps: int = option(30000, "optimiser steps at the most", low=1)
    epochs: int = option(15, "passes over the data at the most", low=1)
    max_minutes: float = option(0.0, "stop after this many minutes; 0: no limit", low=0.0)
    precision: str = option(
        "fp32", "compute precision; weights stay fp32", choices=("fp32", "fp16", "bf16")
    )
    gradient_checkpointing: bool = option(False, "recompute activations to save memory")
    label_smoothing: float = option(0.0, "share of probability spread evenly", low=0.0, high=0.5)
    ema_decay: float = option(0.0, "decay of the averaged weights; 0: off", low=0.0, high=0.999999)
    eval_every: int = option(500, "steps between evaluations", low=1)
    eval_epochs: int = option(0, "epochs between evaluations; 0: eval_every", low=0)
    eval_batches: int = option(20, "validation batches per evaluation", low=1)
    sample_seconds: float = option(
        20.0,
        "length of the MIDI sample written at evaluations; 0: no sample, of any model",
        low=0.0,
        high=3600.0,
    )
    patience: int = option(10, "evaluations without progress before stopping; 0: never", low=0)
    min_epochs: int = option(0, "epochs before patience may stop a run", low=0)
    save_every: int = option(500, "steps between resumable saves", low=1)
    save_epochs: int = option(0, "epochs between resumable saves; 0: save_every", low=0)
    log_every: int = option(10, "steps between log lines", low=1)
    max_bad_steps: int = option(10, "NaN/Inf steps in a row before stopping", low=1)
    memory_gb: float = option(0.0, "memory a run may take; 0: what the machine has", low=0.0)
    seed: int = option(0, "seed of weights, order and augmentation", low=0, high=2**31 - 1)


@dataclass(frozen=True)
class SamplingConfig(Section):
    """How events are drawn and what counts as playable music (section `sampling`)."""

    temperature: float = option(0.85, "divides the logits; 0: greedy", low=0.0, high=10.0)
    top_k: int = option(40, "keep the k likeliest events; 0: all", low=0, high=388)
    top_p: float = option(0.92, "keep the likeliest events up to this mass", low=1e-6, high=1.0)
    min_p: float = option(0.0, "drop events below this share of the likeliest", low=0.0, high=1.0)
    repetition_penalty: float = option(
        1.0, "divides the chance of pitches struck lately; 1: off", low=1.0, high=10.0
    )
    guidance_scale: float = option(1.0, "classifier-free guidance; 1: off", low=0.0, high=10.0)
    max_polyphony: int = option(16, "notes that may sound together", low=1, high=128)
    max_note_seconds: float = option(8.0, "longest note", low=0.05, high=60.0)
    max_rest_seconds: float = option(4.0, "longest silence", low=0.01, high=60.0)
    lowest_pitch: int = option(21, "lowest MIDI pitch", low=0, high=127)
    highest_pitch: int = option(108, "highest MIDI pitch", low=0, high=127)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lowest_pitch > self.highest_pitch:
            raise ConfigError(
                "lowest_pitch", f"{self.lowest_pitch} is above highest_pitch {self.highest_pitch}"
            )


@dataclass(frozen=True)
class SpectocloudVitConfig(Section):
    """Sizes of SpectocloudViT (section `model`)."""

    mel_bands: int = option(128, "height of the spectrogram", low=128, high=128)
    window_frames: int = option(64, "width of the spectrogram", low=64, high=64)
    patch_size: int = option(4, "side of a patch", low=2, high=8)
    dims: tuple[int, ...] = option((64, 128, 256, 512), "width of each stage", low=8, high=4096)
    depths: tuple[int, ...] = option((2, 2, 2, 2), "blocks of each stage", low=1, high=48)
    window_size: int = option(8, "side of an attention window in the first stage", low=2, high=64)
    shift: bool = option(True, "shift every second window; false for the Neural Engine")
    head_dim: int = option(64, "width of one attention head", low=8, high=256)
    mlp_ratio: int = option(4, "width of the feed-forward layers over that of their stage", low=1)
    activation: str = option(
        "relu2",
        "of the feed-forward layers (exact GELU or squared ReLU)",
        choices=("relu2", "gelu"),
    )
    emotion_dim: int = option(64, "length of the emotion vector", low=64, high=64)
    feature_dim: int = option(32, "number of MIDI features", low=32, high=32)
    condition_dim: int = option(320, "width of what modulates the norms", low=16, high=4096)
    decoder_dim: int = option(64, "width of a point query", low=32, high=1024)
    decoder_layers: int = option(2, "times a point looks at the encoder", low=1, high=16)
    norm_eps: float = option(1e-5, "epsilon of LayerNorm", low=1e-12, high=1e-2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.dims) != len(self.depths) or len(self.dims) < 2:
            raise ConfigError(
                "depths", "needs one number for each of the stages in dims, at least 2"
            )
        for dim in (*self.dims, self.decoder_dim):
            if dim % self.head_dim:
                raise ConfigError("head_dim", f"{self.head_dim} does not divide the width {dim}")
        # every stage but the first halves both sides of the map
        side = self.patch_size * 2 ** (len(self.dims) - 1)
        if self.mel_bands % side or self.window_frames % side:
            raise ConfigError(
                "patch_size",
                f"{self.patch_size} with {len(self.dims)} stages needs sides that {side} divides",
            )
        if (self.window_frames // self.patch_size) % self.window_size:
            raise ConfigError(
                "window_size",
                f"{self.window_size} does not divide the map of "
                f"{self.mel_bands // self.patch_size} x {self.window_frames // self.patch_size}",
            )


@dataclass(frozen=True)
class CloudDataConfig(Section):
    """Where the prepared clouds are (section `data`)."""

    path: str = option("data/spectocloud", "folder made by `prepare spectocloud`")
    points: int = option(1200, "points of a cloud that training looks at", low=16, high=1200)
    prefetch: int = option(4, "batches made ahead by a background thread", low=0, high=64)


@dataclass(frozen=True)
class CloudLossConfig(Section):
    """What the parts of the cloud's loss weigh (section `loss`)."""

    chamfer: float = option(1.0, "Chamfer distance of the positions", low=0.0, high=100.0)
    color: float = option(0.5, "squared error of r, g, b, a of matched points", low=0.0, high=100.0)
    properties: float = option(
        0.3, "smooth L1 of size, glow, depth of matched points", low=0.0, high=100.0
    )
    smoothness: float = option(
        0.1, "squared error of the points' movement to the next frame", low=0.0, high=100.0
    )
    identity: float = option(
        1.0, "squared distance of point i from the teacher's point i", low=0.0, high=100.0
    )


@dataclass(frozen=True)
class EmotionRecognizerModelConfig(Section):
    """Sizes of EmotionRecognizer (section `model`)."""

    n_mels: int = option(128, "mel bands of the spectrogram", low=8, high=512)
    semitones: bool = option(True, "hear semitones beside the mel bands, and so major and minor")
    patch_frames: int = option(4, "spectrogram frames in one step of the network", low=1, high=16)
    dim: int = option(96, "width of the network", low=8, high=1024)
    num_layers: int = option(3, "number of blocks; block k looks 2^k times as far", low=1, high=8)
    kernel_size: int = option(7, "taps of a block's convolution over time", low=2, high=31)
    expansion: int = option(4, "width of a block's inner layer over dim", low=1, high=8)
    memory_frames: int = option(
        625, "frames in which what was heard fades to 1/e (625: 10 s)", low=16, high=100_000
    )
    labels: tuple[str, ...] = option((), "labels to tell apart; []: those of the manifest")
    num_cues: int = option(0, "musical cues to hear; 0: those of the manifest", low=0, high=256)
    norm_eps: float = option(1e-5, "epsilon of LayerNorm", low=1e-12, high=1e-2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError("labels", "names a label twice")
        unknown = [label for label in self.labels if label not in LABELS]
        if unknown:
            raise ConfigError(
                "labels", f"{unknown[0][:40]!r} is unknown; known are {', '.join(LABELS)}"
            )


@dataclass(frozen=True)
class AudioEmotionDataConfig(Section):
    """Where the labelled recordings are and how they are heard (section `data`)."""

    manifest: str = option("data/audio-emotion/manifest.jsonl", "list of labelled recordings")
    cache: str = option("", "folder for spectrograms; empty: mel-cache beside the manifest")
    sample_rate: int = option(16_000, "samples a second", low=8_000, high=48_000)
    n_fft: int = option(1024, "samples in a frame", low=64, high=8192)
    hop_length: int = option(256, "samples from frame to frame", low=16, high=8192)
    semitone_n_fft: int = option(
        8192, "samples in a frame of the semitones, n_fft or more", low=64, high=65_536
    )
    labelled_share: float = option(
        0.75, "share of a batch with labels, where some recordings have none", low=0.0, high=1.0
    )
    clip_seconds: float = option(8.0, "length of a training clip", low=0.5, high=60.0)
    augment: bool = option(False, "stretch, shift, tilt, louder and softer, masks")
    augment_variants: int = option(
        3, "stretched, shifted, tilted copies of each when augmenting", low=0, high=64
    )
    val_share: float = option(
        0.1, "share of songs held out where the manifest has no split", low=0.0, high=0.9
    )
    dropout: float = option(0.3, "share of pooled features dropped in training", low=0.0, high=0.9)
    workers: int = option(0, "processes that make spectrograms; 0: all cores", low=0, high=256)
    prefetch: int = option(4, "batches made ahead by a background thread", low=0, high=64)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_fft % 2 or self.hop_length > self.n_fft:
            raise ConfigError("n_fft", f"{self.n_fft} has to be even and at least hop_length")
        if self.semitone_n_fft % 2 or self.semitone_n_fft < self.n_fft:
            raise ConfigError(
                "semitone_n_fft", f"{self.semitone_n_fft} has to be even and at least n_fft"
            )


@dataclass(frozen=True)
class EmotionLossConfig(Section):
    """What the parts of the recogniser's loss weigh (section `loss`)."""

    numbers: float = option(
        10.0, "squared error of valence, arousal, intensity", low=0.0, high=1000.0
    )
    labels: float = option(0.3, "cross-entropy of the labels", low=0.0, high=1000.0)
    cues: float = option(1.0, "squared error of the musical cues", low=0.0, high=1000.0)


@dataclass(frozen=True)
class RunConfig(Section):
    """What every run has; each model has its own class with its own sections and defaults."""

    name: ClassVar[str]

    model: Section = field(default_factory=Section)
    data: Section = field(default_factory=Section)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)

    def __post_init__(self) -> None:
        """Check what one section cannot check alone; sections have checked themselves."""


@dataclass(frozen=True)
class MidiGeneratorConfig(RunConfig):
    """One run of the MIDI generator: everything that `train --model midi_generator` can be told."""

    name: ClassVar[str] = "midi_generator"

    model: MidiTransformerConfig = field(default_factory=MidiTransformerConfig)
    data: MidiDataConfig = field(default_factory=MidiDataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if self.data.sequence_length > self.model.context_length:
            raise ConfigError(
                "data.sequence_length",
                f"{self.data.sequence_length} is longer than model.context_length "
                f"{self.model.context_length}",
            )


@dataclass(frozen=True)
class SpectocloudConfig(RunConfig):
    """One run of Spectocloud: everything that `train --model spectocloud` can be told."""

    name: ClassVar[str] = "spectocloud"

    model: SpectocloudVitConfig = field(default_factory=SpectocloudVitConfig)
    data: CloudDataConfig = field(default_factory=CloudDataConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-4, beta2=0.999, weight_decay=0.05, warmup_steps=1000
        )
    )
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            batch_size=32, max_steps=50_000, epochs=20, ema_decay=0.9999
        )
    )
    loss: CloudLossConfig = field(default_factory=CloudLossConfig)

    def __post_init__(self) -> None:
        if self.training.batch_size % 2:
            raise ConfigError(
                "training.batch_size",
                f"{self.training.batch_size} is odd, but clouds come in pairs of frames",
            )
        if self.training.label_smoothing:
            raise ConfigError(
                "training.label_smoothing", "clouds have no labels to smooth; leave it 0"
            )


@dataclass(frozen=True)
class EmotionRecognizerConfig(RunConfig):
    """One run of the recogniser: everything `train --model emotion_recognizer` can be told."""

    name: ClassVar[str] = "emotion_recognizer"

    model: EmotionRecognizerModelConfig = field(default_factory=EmotionRecognizerModelConfig)
    data: AudioEmotionDataConfig = field(default_factory=AudioEmotionDataConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3e-3, beta2=0.99, weight_decay=0.1, warmup_steps=50
        )
    )
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            batch_size=32,
            max_steps=2000,
            epochs=60,
            ema_decay=0.99,
            label_smoothing=0.1,
            eval_every=50,
            eval_batches=100,
            save_every=100,
            sample_seconds=0.0,
        )
    )
    loss: EmotionLossConfig = field(default_factory=EmotionLossConfig)

    def __post_init__(self) -> None:
        if self.training.gradient_checkpointing:
            raise ConfigError(
                "training.gradient_checkpointing",
                "the recogniser is too small for it; leave it out",
            )
        patch_seconds = self.model.patch_frames * self.data.hop_length / self.data.sample_rate
        if self.data.clip_seconds < patch_seconds:
            raise ConfigError(
                "data.clip_seconds",
                f"{self.data.clip_seconds:g} s is shorter than one step of the network, "
                f"{patch_seconds:g} s (model.patch_frames frames)",
            )


RUN_CONFIGS: dict[str, type[RunConfig]] = {
    run.name: run for run in (MidiGeneratorConfig, SpectocloudConfig, EmotionRecognizerConfig)
}
