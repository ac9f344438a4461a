"""SpectocloudViT: sound, notes and emotion to a cloud of points, in one pass.

A hierarchical transformer reads the spectrogram; emotion and MIDI features modulate every norm of
it; point queries, made from what each point is (`kmidi_mlx.spectocloud.point_codes`), look at its
last stages and become points. What depends on neither sound nor emotion (position biases, queries)
is `Constants`, made once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx import nn

from kmidi_mlx.config import SpectocloudVitConfig
from kmidi_mlx.models.layers import CrossAttention, add_linear
from kmidi_mlx.models.sound_places import (
    NOW_DIM,
    PLACE_DIM,
    SHARE_DIM,
    SoundPlaces,
    now_codes,
    place_codes,
    sound_places,
)
from kmidi_mlx.models.swin import (
    ACTIVATIONS,
    Mlp,
    Modulation,
    PatchMerging,
    RelativeAttention,
    SwinBlock,
    modulated_norm,
    partition,
    shift,
    shift_mask,
    unpartition,
)
from kmidi_mlx.spectocloud import CHANNELS, DEFAULT_POINTS, LEVELS_OF_DETAIL
from kmidi_mlx.spectocloud.point_codes import CODE_DIM, point_codes, seed_columns

# positions are in [-1, 1], everything else in [0, 1]
_SCALE = (2.0,) * 3 + (1.0,) * 7
_OFFSET = (-1.0,) * 3 + (0.0,) * 7

# Factors that bring the features to the scale of the emotion's 64 numbers: the shares of the
# twelve pitch classes are small, the other features seldom use their range.
_FEATURE_SCALE = (8.0,) * 12 + (3.0,) * 20
_PITCH_CLASSES = 12
_CHANNELS_IN = 3  # of the spectrogram: itself and its shares of pitch and time
# How sharply a point looks at its place at first: e^(this squared) against places far away.
_SHARPNESS = 2.2


@dataclass(frozen=True)
class Constants:
    """What the network needs beside a frame's inputs; changes only with weights or points.

    Attributes:
        biases: position biases, one a block, as of `RelativeAttention.bias`.
        queries: `(points, decoder_dim)`.
    """

    biases: list[mx.array]
    queries: mx.array


class DecoderLayer(nn.Module):
    """Points look at the encoder's tokens; they do not look at each other."""

    def __init__(self, config: SpectocloudVitConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.attention = CrossAttention(dim, dim // config.head_dim)
        self.mlp = Mlp(dim, config.mlp_ratio * dim, config.activation)
        self.norm_eps = config.norm_eps

    def __call__(
        self, x: mx.array, memory: mx.array, first: Modulation, second: Modulation
    ) -> mx.array:
        """Points `(batch, points, dim)` after a look at `memory` `(batch, tokens, dim)`."""
        keys, values = self.attention.keys_values(memory)
        seen = modulated_norm(x, first, self.norm_eps)
        x = self.attention.attend(x, seen, keys, values, None)
        return self.mlp(x, modulated_norm(x, second, self.norm_eps))


class SpectocloudViT(nn.Module):
    """The network; 12M parameters by default.

    Args:
        config: sizes.
    """

    def __init__(self, config: SpectocloudVitConfig) -> None:
        super().__init__()
        self.config = config
        rows = config.mel_bands // config.patch_size
        columns = config.window_frames // config.patch_size
        self.patch_embedding = nn.Linear(
            _CHANNELS_IN * config.patch_size**2, config.dims[0], bias=False
        )
        self.position_embedding = mx.zeros((rows * columns, config.dims[0]))
        conditions = config.emotion_dim + config.feature_dim + _PITCH_CLASSES + NOW_DIM
        self.condition_in = nn.Linear(conditions, config.condition_dim)
        self.condition_out = nn.Linear(config.condition_dim, config.condition_dim)
        self.stages = [
            [self._block(stage, index) for index in range(depth)]
            for stage, depth in enumerate(config.depths)
        ]
        self.merges = [
            PatchMerging(dim, wider, config.norm_eps)
            for dim, wider in zip(config.dims, config.dims[1:], strict=False)
        ]
        # the first stage is too long to look at point by point
        self.memory_norms = [nn.LayerNorm(dim, eps=config.norm_eps) for dim in config.dims[1:]]
        self.memory_projections = [nn.Linear(dim, config.decoder_dim) for dim in config.dims[1:]]
        seen = sum(rows * columns // 4**stage for stage in range(1, len(config.dims)))
        self.memory_position_embedding = mx.zeros((seen, config.decoder_dim))
        self.memory_places = nn.Linear(PLACE_DIM, config.decoder_dim, bias=False)
        self.query_codes = nn.Linear(CODE_DIM, config.decoder_dim, bias=False)
        self.query_in = nn.Linear(CODE_DIM, 4 * config.decoder_dim)
        self.query_out = nn.Linear(4 * config.decoder_dim, config.decoder_dim)
        self.decoder = [DecoderLayer(config) for _ in range(config.decoder_layers)]
        self.modulation = nn.Linear(config.condition_dim, 2 * sum(self._modulated_dims()))
        self.head = nn.Linear(config.decoder_dim, len(CHANNELS))
        self.checkpoint_blocks = False  # recompute activations in training to save memory

    def _map(self, stage: int) -> tuple[int, int]:
        side = self.config.patch_size * 2**stage
        return self.config.mel_bands // side, self.config.window_frames // side

    def _shifted(self, stage: int, index: int) -> bool:
        return self.config.shift and stage == 0 and index % 2 == 1

    def _block(self, stage: int, index: int) -> SwinBlock:
        config = self.config
        dim, (height, width) = config.dims[stage], self._map(stage)
        mask = None
        if stage == 0:
            window = config.window_size
            if self._shifted(stage, index):
                mask = shift_mask(height, width, window, window // 2)
            height = width = window
        attention = RelativeAttention(dim, config.head_dim, height, width, mask)
        return SwinBlock(attention, dim, config.mlp_ratio, config.activation, config.norm_eps)

    def _modulated_dims(self) -> list[int]:
        """Width of every modulated norm, in the order of use."""
        config = self.config
        blocks = [
            dim
            for dim, depth in zip(config.dims, config.depths, strict=True)
            for _ in range(2 * depth)
        ]
        return blocks + [config.decoder_dim] * (2 * config.decoder_layers + 1)

    def initialise(self, seed: int) -> None:
        """Draw the weights: normal(0.02), with what writes to the residual scaled down by depth.

        The first layer of queries and conditions keeps its scale, norms start unmodulated, and
        points look at their places.
        """
        config = self.config
        writes = 2 * sum(config.depths)
        key = mx.random.key(seed)
        drawn = []
        for name, value in nn.utils.tree_flatten(self.parameters()):
            if name.endswith("bias") and "norm" not in name:
                drawn.append((name, mx.zeros_like(value)))
            if value.ndim < 2:
                continue
            key, own = mx.random.split(key)
            scale = value.shape[-1] ** -0.5
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                scale /= writes**0.5
            elif name.startswith(("position", "modulation", "head")) or "bias_table" in name:
                scale = 0.02
            drawn.append((name, scale * mx.random.normal(value.shape, key=own)))
        self.load_weights(drawn, strict=False)
        gains = [mx.full((dim,), value) for dim in self._modulated_dims() for value in (1.0, 0.0)]
        self.modulation.bias = mx.concatenate(gains)
        self._align_places()

    def _align_places(self) -> None:
        """Let a point look first where the shares of the sound are its seeds.

        Queries and tokens hold the seeds' codes in their first numbers, alone, and the first layer
        of the decoder compares these; all of it can be unlearnt.
        """
        told, dim = 2 * SHARE_DIM, self.config.decoder_dim
        mirror = np.eye(dim, told, dtype=np.float32)

        def rows(layer: nn.Linear, first: np.ndarray | float, others: float = 1.0) -> None:
            weight = others * np.array(layer.weight)
            weight[:told] = first
            layer.weight = mx.array(weight)

        rows(self.query_codes, np.eye(CODE_DIM, dtype=np.float32)[seed_columns(SHARE_DIM)])
        rows(self.query_out, 0.0)
        rows(self.memory_places, np.eye(told, PLACE_DIM, dtype=np.float32))
        for projection in self.memory_projections:
            rows(projection, 0.0)
        attention = self.decoder[0].attention
        rows(attention.query, _SHARPNESS * mirror.T, 0.3)
        keys, values = np.split(np.array(attention.kv.weight), 2)
        keys = np.concatenate([_SHARPNESS * mirror.T, 0.3 * keys[told:]])
        attention.kv.weight = mx.array(np.concatenate([keys, values]))

    def constants(self, points: int | mx.array = DEFAULT_POINTS) -> Constants:
        """Fold what does not depend on a frame.

        Args:
            points: 1 to 3000, how many points; or `(n,)` indices of the points to draw.

        Raises:
            KmidiError: if there are no such points.
        """
        if isinstance(points, int):
            codes = mx.array(point_codes(points))
        else:
            codes = mx.array(point_codes(LEVELS_OF_DETAIL[-1]))[points]
        activation = ACTIVATIONS[self.config.activation]
        codes = codes.astype(self.position_embedding.dtype)
        queries = self.query_codes(codes) + self.query_out(activation(self.query_in(codes)))
        return Constants(
            [block.attention.bias() for blocks in self.stages for block in blocks], queries
        )

    def __call__(
        self, windows: mx.array, features: mx.array, emotion: mx.array, constants: Constants
    ) -> mx.array:
        """Draw clouds.

        Args:
            windows: `(batch, 128, 64)` log-compressed mel in [0, 1], newest frame last.
            features: `(batch, 32)` MIDI features in [-1, 1].
            emotion: `(batch, 64)` emotion vectors.
            constants: from `constants`.

        Returns:
            `(batch, points, 10)` in fp32, columns as in `kmidi_mlx.spectocloud.CHANNELS`: x, y, z
            in [-1, 1], all others in [0, 1].
        """
        windows = windows.astype(self.position_embedding.dtype)
        places = sound_places(windows)
        modulations = self._modulations(features, emotion, places)
        memory = self._memory(windows, places, constants.biases, modulations)
        batch = windows.shape[0]
        x = mx.broadcast_to(constants.queries, (batch, *constants.queries.shape))
        for layer in self.decoder:
            x = layer(x, memory, next(modulations), next(modulations))
        x = self.head(modulated_norm(x, next(modulations), self.config.norm_eps))
        return mx.sigmoid(x.astype(mx.float32)) * mx.array(_SCALE) + mx.array(_OFFSET)

    def _modulations(
        self, features: mx.array, emotion: mx.array, places: SoundPlaces
    ) -> Iterator[Modulation]:
        """Gain and bias of every norm, in the order of use."""
        pitches = features[:, :_PITCH_CLASSES]
        strongest = mx.max(pitches, axis=-1, keepdims=True)
        told = [
            emotion,
            features * mx.array(_FEATURE_SCALE, features.dtype),
            pitches / mx.maximum(strongest, 1e-3),
        ]
        dtype = self.position_embedding.dtype
        heard = 3.0 * now_codes(places)
        condition = mx.concatenate([*(part.astype(dtype) for part in told), heard], axis=-1)
        activation = ACTIVATIONS[self.config.activation]
        # a straight path beside the curved one: much of what emotion and notes do is linear
        condition = self.condition_in(condition)
        condition = condition + self.condition_out(activation(condition))
        everything = self.modulation(condition)
        start = 0
        for dim in self._modulated_dims():
            yield everything[:, start : start + dim], everything[:, start + dim : start + 2 * dim]
            start += 2 * dim

    def _memory(
        self,
        windows: mx.array,
        places: SoundPlaces,
        biases: list[mx.array],
        modulations: Iterator[Modulation],
    ) -> mx.array:
        """Tokens that the points look at: `(batch, tokens, decoder_dim)`."""
        window = self.config.window_size
        x = self._patches(windows, places)
        biases_left = iter(biases)
        memory = []
        for stage, blocks in enumerate(self.stages):
            height, width = self._map(stage)
            if stage:
                x = self.merges[stage - 1](x, height * 2, width * 2)
            else:
                x = partition(x, height, width, window)
            for index, block in enumerate(blocks):
                shifted = self._shifted(stage, index)
                if shifted:
                    x = self._to_shifted(x, height, width, window // 2)
                run = nn.utils.checkpoint(block) if self.checkpoint_blocks else block
                x = run(x, next(biases_left), next(modulations), next(modulations))
                if shifted:
                    last = index == len(blocks) - 1
                    x = self._from_shifted(x, height, width, window // 2, to_rows=last)
            if stage:
                norm, projection = self.memory_norms[stage - 1], self.memory_projections[stage - 1]
                memory.append(projection(norm(x)))
            elif not self._shifted(stage, len(blocks) - 1):
                x = unpartition(x, height, width, window)
        memory[0] = memory[0] + self.memory_places(place_codes(places, *self._map(1)))
        return mx.concatenate(memory, axis=1) + self.memory_position_embedding

    def _patches(self, windows: mx.array, places: SoundPlaces) -> mx.array:
        """Embed patches: `(batch, 128, 64)` to `(batch, tokens, dims[0])`, row by row."""
        batch, side = windows.shape[0], self.config.patch_size
        height, width = self._map(0)
        channels = mx.concatenate([windows, places.below, places.before], axis=1)
        # twice two axes change places: four axes at a time is all that a Neural Engine holds
        patches = channels.reshape(batch * _CHANNELS_IN * height, side, width, side)
        patches = patches.transpose(0, 2, 1, 3)
        patches = patches.reshape(batch, _CHANNELS_IN, height * width, side * side)
        patches = patches.transpose(0, 2, 1, 3).reshape(batch, height * width, -1)
        return add_linear(self.position_embedding, self.patch_embedding, patches)

    def _to_shifted(self, x: mx.array, height: int, width: int, by: int) -> mx.array:
        window = self.config.window_size
        rows = shift(unpartition(x, height, width, window), height, width, by)
        return partition(rows, height, width, window)

    def _from_shifted(
        self, x: mx.array, height: int, width: int, by: int, to_rows: bool
    ) -> mx.array:
        window = self.config.window_size
        rows = shift(unpartition(x, height, width, window), height, width, -by)
        return rows if to_rows else partition(rows, height, width, window)
