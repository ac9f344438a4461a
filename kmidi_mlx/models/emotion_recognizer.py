"""EmotionRecognizer: from sound to valence, arousal, intensity and labels, while it comes in.

A causal network over the mel bands of the frames of `kmidi_mlx.audio.hearing`: patches of a few
frames, then blocks of a dilated depthwise convolution over time and a feed-forward layer (the shape
of ConvNeXt, Liu et al. 2022, arXiv 2201.03545, with the squared ReLU of So et al. 2021, arXiv
2109.08668). Mean and standard deviation of what the blocks find, in which the past fades
exponentially, feed small linear heads (statistics pooling, Snyder et al. 2018), and so do mode and
key of the semitones heard meanwhile (`kmidi_mlx.models.tonality`). One head learns musical cues,
where training knows the notes: a few hundred ratings say little, notes much. Valence, arousal and
intensity then follow linearly from cues and key alone (concept bottleneck, Koh et al. 2020, arXiv
2007.04612); without cues they follow from all that was found.

Nothing looks ahead and nothing is normalised over the recording, so `step` gives for a stream,
however it is cut, what `__call__` gives for all that was heard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import mlx.core as mx
from mlx import nn

from kmidi_mlx.audio.hearing import SEMITONES
from kmidi_mlx.config import EmotionRecognizerModelConfig
from kmidi_mlx.models.tonality import TONAL_FEATURES, chroma, tonal_features

# Compressed mel is about 0.35 ± 0.2 in piano music; silence is 0.
_MEL_CENTRE, _MEL_SCALE = 0.35, 4.0
# Standard deviations of normalised features are about 1; the square root needs a floor.
_VARIANCE_FLOOR = 1e-4


@dataclass(frozen=True)
class Estimate:
    """What was recognised.

    Attributes:
        numbers: `(batch, 3)` valence and arousal in [-1, 1], intensity in [0, 1].
        logits: `(batch, labels)`, before any temperature; no columns where no labels were learnt.
        cues: `(batch, num_cues)` musical cues, standardised; no columns where none were learnt.
    """

    numbers: mx.array
    logits: mx.array
    cues: mx.array


@dataclass(frozen=True)
class RecognizerState:
    """What a stream has to remember; made by `EmotionRecognizer.start`.

    Attributes:
        pending: `(batch, fewer than patch_frames, bands)` frames of a patch that is not yet full.
        last_patch: `(batch, 1, patch_frames * n_mels)` the patch before.
        pasts: inputs that the convolutions of the blocks still reach back to.
        mass: weight of all that was heard, `(1, 1)`.
        total: `(batch, dim)` weighted sum of the features.
        squares: `(batch, dim)` weighted sum of their squares.
        profile: `(batch, 12)` weighted sum of the pitch classes; no columns without semitones.
    """

    pending: mx.array
    last_patch: mx.array
    pasts: tuple[mx.array, ...]
    mass: mx.array
    total: mx.array
    squares: mx.array
    profile: mx.array


class CausalConvolution(nn.Module):
    """Depthwise convolution over time that looks back `(kernel_size - 1) * dilation` steps."""

    def __init__(self, dim: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.weight = mx.zeros((kernel_size, dim))
        self.bias = mx.zeros((dim,))

    @property
    def reach(self) -> int:
        """Steps that it looks back."""
        return (self.weight.shape[0] - 1) * self.dilation

    def __call__(self, x: mx.array, past: mx.array) -> tuple[mx.array, mx.array]:
        """Convolve `(batch, time, dim)` after its past; return the result and the next past."""
        joined = mx.concatenate([past.astype(x.dtype), x], axis=1)
        time = x.shape[1]
        result = self.bias
        for tap in range(self.weight.shape[0]):
            first = tap * self.dilation
            result = result + joined[:, first : first + time] * self.weight[tap]
        return result, joined[:, time:]


class RecognizerBlock(nn.Module):
    """Convolution over time, LayerNorm, feed-forward layer with squared ReLU, around a residual."""

    def __init__(self, config: EmotionRecognizerModelConfig, dilation: int) -> None:
        super().__init__()
        dim, inner = config.dim, config.dim * config.expansion
        self.convolution = CausalConvolution(dim, config.kernel_size, dilation)
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.up = nn.Linear(dim, inner)
        self.down = nn.Linear(inner, dim)

    def __call__(self, x: mx.array, past: mx.array) -> tuple[mx.array, mx.array]:
        """`(batch, time, dim)` to the same shape, and the next past."""
        found, past = self.convolution(x, past)
        return x + self.down(mx.square(nn.relu(self.up(self.norm(found))))), past


class EmotionRecognizer(nn.Module):
    """Recogniser of emotion in sound; 0.3M parameters by default.

    `__call__` takes whole clips (training, evaluation), `step` a stream in pieces of any size.
    """

    def __init__(self, config: EmotionRecognizerModelConfig) -> None:
        super().__init__()
        self.config = config
        # each step sees its patch and the one before
        self.stem = nn.Linear(2 * config.patch_frames * config.n_mels, config.dim)
        self.stem_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.blocks = [RecognizerBlock(config, 2**index) for index in range(config.num_layers)]
        self.final_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        tonal = self._tonal * len(TONAL_FEATURES)
        heard = self.pooled_dim + tonal
        self.numbers = nn.Linear(config.num_cues + tonal if config.num_cues else heard, 3)
        if config.labels:
            self.labels = nn.Linear(heard, len(config.labels))
        if config.num_cues:
            self.cues = nn.Linear(heard, config.num_cues)

    @property
    def pooled_dim(self) -> int:
        """Width of what the blocks find, pooled: where dropout is."""
        return 2 * self.config.dim

    @property
    def bands(self) -> int:
        """Columns of a frame."""
        return self.config.n_mels + self._tonal * SEMITONES

    @property
    def _tonal(self) -> int:
        return int(self.config.semitones)

    def initialise(self, seed: int) -> None:
        """Draw the weights: normal with variance 1 / fan-in, 2 / fan-in for what feeds a ReLU.

        What writes to the residual is scaled down by depth; biases become zero.
        """
        key = mx.random.key(seed)
        drawn = []
        for name, value in nn.utils.tree_flatten(self.parameters()):
            if value.ndim < 2:
                continue
            key, own = mx.random.split(key)
            convolution = name.endswith("convolution.weight")
            fan_in = value.shape[0 if convolution else 1]
            scale = (1.0 / fan_in) ** 0.5
            if name.endswith("down.weight"):
                scale *= 0.5 / self.config.num_layers**0.5
            if name.startswith(("numbers", "labels", "cues")):
                scale *= 0.1
            drawn.append((name, mx.random.normal(value.shape, key=own) * scale))
        biases = [
            (name, mx.zeros_like(value))
            for name, value in nn.utils.tree_flatten(self.parameters())
            if name.endswith("bias")
        ]
        self.load_weights([*drawn, *biases], strict=False)

    def start(self, batch: int = 1) -> RecognizerState:
        """Return the state of streams that have heard nothing: before them was silence."""
        config = self.config
        return RecognizerState(
            pending=mx.zeros((batch, 0, self.bands)),
            last_patch=mx.zeros((batch, 1, config.patch_frames * config.n_mels)),
            pasts=tuple(
                mx.zeros((batch, block.convolution.reach, config.dim)) for block in self.blocks
            ),
            mass=mx.zeros((1, 1)),
            total=mx.zeros((batch, config.dim)),
            squares=mx.zeros((batch, config.dim)),
            profile=mx.zeros((batch, 12 * self._tonal)),
        )

    def __call__(
        self, mel: mx.array, frames: mx.array | None = None, keep: mx.array | None = None
    ) -> Estimate:
        """Recognise the emotion of whole clips.

        Args:
            mel: `(batch, time, bands)` frames as `hear` gives them, at least `patch_frames`; those
                beyond a whole number of patches are not looked at.
            frames: `(batch,)` frames of each clip that count, at least `patch_frames`; None: all.
            keep: `(batch, pooled_dim)` factors of the pooled features, for dropout; None: all 1.
        """
        state = self.start(mel.shape[0])
        steps = mel.shape[1] // self.config.patch_frames
        frames_of_steps = mel[:, : steps * self.config.patch_frames]
        features, classes, _ = self._features(frames_of_steps, state)
        if frames is None:
            counted = mx.full((mel.shape[0], 1), steps)
        else:
            counted = (frames // self.config.patch_frames)[:, None]
        age = counted - 1 - mx.arange(steps)[None]
        weights = mx.where(age >= 0, mx.exp(mx.maximum(age, 0) * self._log_decay), 0.0)
        weights = weights / mx.sum(weights, axis=1, keepdims=True)
        mean = mx.sum(features * weights[..., None], axis=1)
        square = mx.sum(mx.square(features) * weights[..., None], axis=1)
        profile = mx.sum(classes * weights[..., None], axis=1)
        return self._estimate(mean, square, profile, keep)

    def step(
        self, mel: mx.array, state: RecognizerState
    ) -> tuple[Estimate | None, RecognizerState]:
        """Take the next frames of streams and return the emotion of all that was heard so far.

        Args:
            mel: `(batch, time, bands)` frames as `hear` gives them, any number.
            state: of the streams so far; it is not changed.

        Returns:
            The estimate, None while no patch is full yet, and the new state.
        """
        config = self.config
        mel = mx.concatenate([state.pending, mel], axis=1)
        steps = mel.shape[1] // config.patch_frames
        ready = steps * config.patch_frames
        state = replace(state, pending=mel[:, ready:])
        if steps:
            features, classes, state = self._features(mel[:, :ready], state)
            weights = mx.exp(mx.arange(steps - 1, -1, -1) * self._log_decay)
            fade = math.exp(steps * self._log_decay)
            state = replace(
                state,
                mass=state.mass * fade + mx.sum(weights),
                total=state.total * fade + mx.sum(features * weights[:, None], axis=1),
                squares=state.squares * fade
                + mx.sum(mx.square(features) * weights[:, None], axis=1),
                profile=state.profile * fade + mx.sum(classes * weights[:, None], axis=1),
            )
        mx.eval(state.pending, state.mass, state.total, state.squares, state.profile, *state.pasts)
        if not state.mass.item():
            return None, state
        mass = state.mass
        mean, square, profile = state.total / mass, state.squares / mass, state.profile / mass
        return self._estimate(mean, square, profile, None), state

    @property
    def _log_decay(self) -> float:
        return -self.config.patch_frames / self.config.memory_frames

    def _features(
        self, frames: mx.array, state: RecognizerState
    ) -> tuple[mx.array, mx.array, RecognizerState]:
        """Features `(batch, steps, dim)` and pitch classes `(batch, steps, 12)`, both in fp32, of
        whole patches, and what comes after them."""
        batch, time, _ = frames.shape
        patch = self.config.patch_frames
        mel, semitones = mx.split(frames, [self.config.n_mels], axis=-1)
        # windows of semitones are much longer than a patch, so the last one says it all
        semitones = semitones[:, patch - 1 :: patch]
        classes = chroma(semitones) if self._tonal else semitones.astype(mx.float32)
        patches = mel.reshape(batch, time // patch, -1)
        before = mx.concatenate([state.last_patch.astype(mel.dtype), patches], axis=1)
        pairs = mx.concatenate([before[:, :-1], patches], axis=-1)
        pairs = ((pairs - _MEL_CENTRE) * _MEL_SCALE).astype(self.stem_norm.weight.dtype)
        x = self.stem_norm(self.stem(pairs))
        pasts = []
        for block, past in zip(self.blocks, state.pasts, strict=True):
            x, past = block(x, past)
            pasts.append(past)
        features = self.final_norm(x).astype(mx.float32)
        state = replace(state, last_patch=patches[:, -1:], pasts=tuple(pasts))
        return features, classes, state

    def _estimate(
        self, mean: mx.array, square: mx.array, profile: mx.array, keep: mx.array | None
    ) -> Estimate:
        dtype = self.stem_norm.weight.dtype
        none = mx.zeros((len(mean), 0))
        variance = mx.maximum(square - mx.square(mean), 0.0)
        pooled = mx.concatenate([mean, mx.sqrt(variance + _VARIANCE_FLOOR)], axis=-1)
        if keep is not None:
            pooled = pooled * keep
        tonal = tonal_features(profile) if self._tonal else none
        heard = mx.concatenate([pooled, tonal], axis=-1).astype(dtype)
        cues = self.cues(heard) if self.config.num_cues else none
        # with a few hundred ratings, numbers may only depend on what has a meaning
        meant = mx.concatenate([cues, tonal.astype(dtype)], axis=-1) if cues.size else heard
        raw = self.numbers(meant).astype(mx.float32)
        numbers = mx.concatenate([mx.tanh(raw[:, :2]), mx.sigmoid(raw[:, 2:])], axis=-1)
        return Estimate(
            numbers,
            self.labels(heard).astype(mx.float32) if self.config.labels else none,
            cues.astype(mx.float32),
        )
