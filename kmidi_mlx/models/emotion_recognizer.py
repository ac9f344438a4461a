"""EmotionRecognizer: from mel frames to valence, arousal, intensity and labels, while they come in.

A causal network over compressed mel frames (`kmidi_mlx.audio.mel.compress`): patches of a few
frames, then blocks of a dilated depthwise convolution over time and a feed-forward layer (the shape
of ConvNeXt, Liu et al. 2022, arXiv 2201.03545, with the squared ReLU of So et al. 2021, arXiv
2109.08668). Mean and standard deviation of what the blocks find, in which the past fades
exponentially, feed small linear heads (statistics pooling, Snyder et al. 2018). One of them learns
musical cues beside emotion, where training knows the notes: a few hundred ratings say little, their
notes much (multi-task learning, Caruana 1997).

Nothing looks ahead and nothing is normalised over the recording, so `step` gives for a stream,
however it is cut, what `__call__` gives for all that was heard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import mlx.core as mx
from mlx import nn

from kmidi_mlx.config import EmotionRecognizerModelConfig

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
        pending: `(batch, fewer than patch_frames, n_mels)` frames of a patch that is not yet full.
        last_patch: `(batch, 1, patch_frames * n_mels)` the patch before.
        pasts: inputs that the convolutions of the blocks still reach back to.
        mass: weight of all that was heard, `(1, 1)`.
        total: `(batch, dim)` weighted sum of the features.
        squares: `(batch, dim)` weighted sum of their squares.
    """

    pending: mx.array
    last_patch: mx.array
    pasts: tuple[mx.array, ...]
    mass: mx.array
    total: mx.array
    squares: mx.array


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
        self.numbers = nn.Linear(2 * config.dim, 3)
        if config.labels:
            self.labels = nn.Linear(2 * config.dim, len(config.labels))
        if config.num_cues:
            self.cues = nn.Linear(2 * config.dim, config.num_cues)

    @property
    def pooled_dim(self) -> int:
        """Width of what the heads see."""
        return 2 * self.config.dim

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
            pending=mx.zeros((batch, 0, config.n_mels)),
            last_patch=mx.zeros((batch, 1, config.patch_frames * config.n_mels)),
            pasts=tuple(
                mx.zeros((batch, block.convolution.reach, config.dim)) for block in self.blocks
            ),
            mass=mx.zeros((1, 1)),
            total=mx.zeros((batch, config.dim)),
            squares=mx.zeros((batch, config.dim)),
        )

    def __call__(
        self, mel: mx.array, frames: mx.array | None = None, keep: mx.array | None = None
    ) -> Estimate:
        """Recognise the emotion of whole clips.

        Args:
            mel: `(batch, time, n_mels)` compressed mel frames, at least `patch_frames` of them;
                frames beyond a whole number of patches are not looked at.
            frames: `(batch,)` frames of each clip that count, at least `patch_frames`; None: all.
            keep: `(batch, pooled_dim)` factors of the pooled features, for dropout; None: all 1.
        """
        state = self.start(mel.shape[0])
        steps = mel.shape[1] // self.config.patch_frames
        features, _ = self._features(mel[:, : steps * self.config.patch_frames], state)
        if frames is None:
            counted = mx.full((mel.shape[0], 1), steps)
        else:
            counted = (frames // self.config.patch_frames)[:, None]
        age = counted - 1 - mx.arange(steps)[None]
        weights = mx.where(age >= 0, mx.exp(mx.maximum(age, 0) * self._log_decay), 0.0)
        weights = weights / mx.sum(weights, axis=1, keepdims=True)
        mean = mx.sum(features * weights[..., None], axis=1)
        square = mx.sum(mx.square(features) * weights[..., None], axis=1)
        return self._estimate(mean, square, keep)

    def step(
        self, mel: mx.array, state: RecognizerState
    ) -> tuple[Estimate | None, RecognizerState]:
        """Take the next frames of streams and return the emotion of all that was heard so far.

        Args:
            mel: `(batch, time, n_mels)` compressed mel frames, any number.
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
            features, state = self._features(mel[:, :ready], state)
            weights = mx.exp(mx.arange(steps - 1, -1, -1) * self._log_decay)
            fade = math.exp(steps * self._log_decay)
            state = replace(
                state,
                mass=state.mass * fade + mx.sum(weights),
                total=state.total * fade + mx.sum(features * weights[:, None], axis=1),
                squares=state.squares * fade
                + mx.sum(mx.square(features) * weights[:, None], axis=1),
            )
        mx.eval(state.pending, state.mass, state.total, state.squares, *state.pasts)
        if not state.mass.item():
            return None, state
        return self._estimate(state.total / state.mass, state.squares / state.mass, None), state

    @property
    def _log_decay(self) -> float:
        return -self.config.patch_frames / self.config.memory_frames

    def _features(self, mel: mx.array, state: RecognizerState) -> tuple[mx.array, RecognizerState]:
        """Features `(batch, steps, dim)` in fp32 of whole patches, and what comes after them."""
        batch, time, _ = mel.shape
        patches = mel.reshape(batch, time // self.config.patch_frames, -1)
        before = mx.concatenate([state.last_patch.astype(mel.dtype), patches], axis=1)
        pairs = mx.concatenate([before[:, :-1], patches], axis=-1)
        pairs = ((pairs - _MEL_CENTRE) * _MEL_SCALE).astype(self.stem.weight.dtype)
        x = self.stem_norm(self.stem(pairs))
        pasts = []
        for block, past in zip(self.blocks, state.pasts, strict=True):
            x, past = block(x, past)
            pasts.append(past)
        features = self.final_norm(x).astype(mx.float32)
        return features, replace(state, last_patch=patches[:, -1:], pasts=tuple(pasts))

    def _estimate(self, mean: mx.array, square: mx.array, keep: mx.array | None) -> Estimate:
        variance = mx.maximum(square - mx.square(mean), 0.0)
        pooled = mx.concatenate([mean, mx.sqrt(variance + _VARIANCE_FLOOR)], axis=-1)
        if keep is not None:
            pooled = pooled * keep
        pooled = pooled.astype(self.stem.weight.dtype)
        raw = self.numbers(pooled).astype(mx.float32)
        numbers = mx.concatenate([mx.tanh(raw[:, :2]), mx.sigmoid(raw[:, 2:])], axis=-1)
        none = mx.zeros((pooled.shape[0], 0))
        return Estimate(
            numbers,
            self.labels(pooled).astype(mx.float32) if self.config.labels else none,
            self.cues(pooled).astype(mx.float32) if self.config.num_cues else none,
        )
