"""SpectocloudViT: sound, notes and emotion to a cloud of points, in one pass.

A hierarchical transformer reads the spectrogram; emotion and MIDI features modulate every norm of
it; point queries, made from what each point is (`kmidi_mlx.spectocloud.point_codes`), look at its
last stages and become points. What depends on neither sound nor emotion (position biases, queries)
is `Constants`, made once.

Weights are those of `kmidi_mlx.models.spectocloud_vit`, name for name, none transposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kmidi_mlx.config import SpectocloudVitConfig
from kmidi_mlx.spectocloud import CHANNELS, DEFAULT_POINTS, LEVELS_OF_DETAIL
from kmidi_mlx.spectocloud.point_codes import CODE_DIM, point_codes, seed_columns
from kmidi_torch.models.layers import CrossAttention, add_linear, checkpoint
from kmidi_torch.models.sound_places import (
    NOW_DIM,
    PLACE_DIM,
    SHARE_DIM,
    SoundPlaces,
    now_codes,
    place_codes,
    sound_places,
)
from kmidi_torch.models.swin import (
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

    biases: list[Tensor]
    queries: Tensor


class DecoderLayer(nn.Module):
    """Points look at the encoder's tokens; they do not look at each other."""

    def __init__(self, config: SpectocloudVitConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.attention = CrossAttention(dim, dim // config.head_dim)
        self.mlp = Mlp(dim, config.mlp_ratio * dim, config.activation)
        self.norm_eps = config.norm_eps

    def forward(self, x: Tensor, memory: Tensor, first: Modulation, second: Modulation) -> Tensor:
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
        self.position_embedding = nn.Parameter(torch.zeros(rows * columns, config.dims[0]))
        conditions = config.emotion_dim + config.feature_dim + _PITCH_CLASSES + NOW_DIM
        self.condition_in = nn.Linear(conditions, config.condition_dim)
        self.condition_out = nn.Linear(config.condition_dim, config.condition_dim)
        self.stages = nn.ModuleList(
            nn.ModuleList(self._block(stage, index) for index in range(depth))
            for stage, depth in enumerate(config.depths)
        )
        self.merges = nn.ModuleList(
            PatchMerging(dim, wider, config.norm_eps)
            for dim, wider in zip(config.dims, config.dims[1:], strict=False)
        )
        # the first stage is too long to look at point by point
        self.memory_norms = nn.ModuleList(
            nn.LayerNorm(dim, eps=config.norm_eps) for dim in config.dims[1:]
        )
        self.memory_projections = nn.ModuleList(
            nn.Linear(dim, config.decoder_dim) for dim in config.dims[1:]
        )
        seen = sum(rows * columns // 4**stage for stage in range(1, len(config.dims)))
        self.memory_position_embedding = nn.Parameter(torch.zeros(seen, config.decoder_dim))
        self.memory_places = nn.Linear(PLACE_DIM, config.decoder_dim, bias=False)
        self.query_codes = nn.Linear(CODE_DIM, config.decoder_dim, bias=False)
        self.query_in = nn.Linear(CODE_DIM, 4 * config.decoder_dim)
        self.query_out = nn.Linear(4 * config.decoder_dim, config.decoder_dim)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.modulation = nn.Linear(config.condition_dim, 2 * sum(self._modulated_dims()))
        self.head = nn.Linear(config.decoder_dim, len(CHANNELS))
        self.checkpoint_blocks = False  # recompute activations in training to save memory
        # a buffer, so that a compiled graph finds a constant
        self._codes: Tensor
        codes = torch.tensor(point_codes(LEVELS_OF_DETAIL[-1]))
        self.register_buffer("_codes", codes, persistent=False)

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
        points look at their places. The same seed draws other numbers than MLX.
        """
        config = self.config
        writes = 2 * sum(config.depths)
        generator = torch.Generator().manual_seed(seed)
        drawn = {}
        for name, value in self.named_parameters():
            if name.endswith("bias") and "norm" not in name:
                drawn[name] = torch.zeros_like(value)
            if value.ndim < 2:
                continue
            scale = value.shape[-1] ** -0.5
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                scale /= writes**0.5
            elif name.startswith(("position", "modulation", "head")) or "bias_table" in name:
                scale = 0.02
            drawn[name] = scale * torch.randn(value.shape, generator=generator)
        gains = [torch.full((dim,), one) for dim in self._modulated_dims() for one in (1.0, 0.0)]
        drawn["modulation.bias"] = torch.cat(gains)
        self.load_state_dict(drawn, strict=False)
        self._align_places()

    @torch.no_grad()
    def _align_places(self) -> None:
        """Let a point look first where the shares of the sound are its seeds.

        Queries and tokens hold the seeds' codes in their first numbers, alone, and the first layer
        of the decoder compares these; all of it can be unlearnt.
        """
        told, dim = 2 * SHARE_DIM, self.config.decoder_dim
        mirror = torch.eye(dim, told).to(self.query_in.weight)

        def rows(layer: nn.Linear, first: Tensor | float, others: float = 1.0) -> None:
            layer.weight *= others
            layer.weight[:told] = first

        rows(self.query_codes, torch.eye(CODE_DIM)[seed_columns(SHARE_DIM)])
        rows(self.query_out, 0.0)
        rows(self.memory_places, torch.eye(told, PLACE_DIM))
        for projection in self.memory_projections:
            rows(projection, 0.0)
        attention = self.decoder[0].attention
        rows(attention.query, _SHARPNESS * mirror.T, 0.3)
        keys, values = torch.chunk(attention.kv.weight, 2)
        keys = torch.cat([_SHARPNESS * mirror.T, 0.3 * keys[told:]])
        attention.kv.weight.copy_(torch.cat([keys, values]))

    def constants(self, points: int | Tensor = DEFAULT_POINTS) -> Constants:
        """Fold what does not depend on a frame.

        Args:
            points: 1 to 3000, how many points; or `(n,)` indices of the points to draw.

        Raises:
            KmidiError: if there are no such points.
        """
        weight = self.query_in.weight
        if isinstance(points, int):
            codes = torch.tensor(point_codes(points)).to(weight)
        else:
            codes = self._codes.to(weight)[points]
        activation = ACTIVATIONS[self.config.activation]
        queries = self.query_codes(codes) + self.query_out(activation(self.query_in(codes)))
        return Constants(
            [block.attention.bias() for blocks in self.stages for block in blocks], queries
        )

    def forward(
        self, windows: Tensor, features: Tensor, emotion: Tensor, constants: Constants
    ) -> Tensor:
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
        windows = windows.to(self.patch_embedding.weight.dtype)
        places = sound_places(windows)
        modulations = self._modulations(features, emotion, places)
        memory = self._memory(windows, places, constants.biases, modulations)
        batch = windows.shape[0]
        x = constants.queries.expand(batch, *constants.queries.shape)
        for layer in self.decoder:
            x = layer(x, memory, next(modulations), next(modulations))
        x = self.head(modulated_norm(x, next(modulations), self.config.norm_eps))
        return torch.sigmoid(x.float()) * x.new_tensor(_SCALE) + x.new_tensor(_OFFSET)

    def _modulations(
        self, features: Tensor, emotion: Tensor, places: SoundPlaces
    ) -> Iterator[Modulation]:
        """Gain and bias of every norm, in the order of use."""
        pitches = features[:, :_PITCH_CLASSES]
        strongest = torch.amax(pitches, dim=-1, keepdim=True)
        told = [
            emotion,
            features * features.new_tensor(_FEATURE_SCALE),
            pitches / torch.clip(strongest, 1e-3),
        ]
        dtype = self.condition_in.weight.dtype
        heard = 3.0 * now_codes(places)
        condition = torch.cat([*(part.to(dtype) for part in told), heard], dim=-1)
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
        windows: Tensor,
        places: SoundPlaces,
        biases: list[Tensor],
        modulations: Iterator[Modulation],
    ) -> Tensor:
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
                run = checkpoint(block) if self.checkpoint_blocks else block
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
        return torch.cat(memory, dim=1) + self.memory_position_embedding

    def _patches(self, windows: Tensor, places: SoundPlaces) -> Tensor:
        """Embed patches: `(batch, 128, 64)` to `(batch, tokens, dims[0])`, row by row."""
        batch, side = windows.shape[0], self.config.patch_size
        height, width = self._map(0)
        channels = torch.cat([windows, places.below, places.before], dim=1)
        # twice two axes change places: four axes at a time is all that a Neural Engine holds
        patches = channels.reshape(batch * _CHANNELS_IN * height, side, width, side)
        patches = patches.transpose(1, 2)
        patches = patches.reshape(batch, _CHANNELS_IN, height * width, side * side)
        patches = patches.transpose(1, 2).reshape(batch, height * width, -1)
        return add_linear(self.position_embedding, self.patch_embedding, patches)

    def _to_shifted(self, x: Tensor, height: int, width: int, by: int) -> Tensor:
        window = self.config.window_size
        rows = shift(unpartition(x, height, width, window), height, width, by)
        return partition(rows, height, width, window)

    def _from_shifted(self, x: Tensor, height: int, width: int, by: int, to_rows: bool) -> Tensor:
        window = self.config.window_size
        rows = shift(unpartition(x, height, width, window), height, width, -by)
        return rows if to_rows else partition(rows, height, width, window)
