"""EmotionMIDITransformer: a decoder that writes piano events under an emotion.

Pre-norm decoder blocks with rotary self-attention and SwiGLU; some blocks also attend to a context
of eight tokens made from the emotion vector and one harmony token (chord and key) per chord
segment. Each event sees only the harmony token in force at its time, so a chord can change while
the music plays.

Weights are those of `kmidi_mlx.models.midi_transformer`, name for name, none transposed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kmidi_mlx.config import MidiTransformerConfig
from kmidi_torch.models.kv_cache import KVCache, Place
from kmidi_torch.models.layers import CrossAttention, FeedForward, SelfAttention, checkpoint

CrossKeysValues = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Conditions:
    """What steers a batch of pieces.

    Attributes:
        emotion: `(batch, emotion_dim)` vectors of `kmidi_mlx.emotion`; zeros: unconditional.
        chords: `(batch, slots)` chord ids of the chord segments; 0: unknown.
        keys: `(batch,)` key ids; 0: unknown.
    """

    emotion: Tensor
    chords: Tensor
    keys: Tensor


class Block(nn.Module):
    """One decoder block: self-attention, cross-attention where asked for, feed-forward."""

    def __init__(self, config: MidiTransformerConfig, cross_attention: bool) -> None:
        super().__init__()
        dim, heads = config.hidden_dim, config.num_heads
        self.attention_norm = nn.RMSNorm(dim, eps=config.norm_eps)
        self.attention = SelfAttention(dim, heads, config.rope_periods)
        if cross_attention:
            self.cross_norm = nn.RMSNorm(dim, eps=config.norm_eps)
            self.cross_attention = CrossAttention(dim, heads)
        self.ffn_norm = nn.RMSNorm(dim, eps=config.norm_eps)
        self.ffn = FeedForward(dim, config.ffn_dim)

    def finish(
        self,
        x: Tensor,
        cross: tuple[Tensor, Tensor] | None,
        cross_mask: Tensor | None,
    ) -> Tensor:
        """Cross-attention and feed-forward, after self-attention."""
        if cross is not None:
            x = self.cross_attention.attend(x, self.cross_norm(x), *cross, cross_mask)
        return self.ffn(x, self.ffn_norm(x))

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        cross_mask: Tensor,
    ) -> Tensor:
        """Whole sequences from position 0: `(batch, time, hidden_dim)` to the same shape."""
        projected = self.attention.project(self.attention_norm(x), 0)
        x = self.attention.attend(x, *projected, "causal")
        crossing = hasattr(self, "cross_attention")
        cross = self.cross_attention.keys_values(context) if crossing else None
        return self.finish(x, cross, cross_mask)


class EmotionMIDITransformer(nn.Module):
    """Decoder-only transformer over the 388 performance events; 25.0M parameters by default.

    Three ways in, equal in result: `forward` for whole sequences (training), `extend` for a few
    events at once (prompts), `step` for one event (generation).
    """

    def __init__(self, config: MidiTransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_dim
        # two input-only rows follow the vocabulary: start of piece and padding
        self.embedding = nn.Embedding(config.vocab_size + 2, dim)
        self.emotion_in = nn.Linear(config.emotion_dim, dim)
        self.emotion_out = nn.Linear(dim, config.emotion_tokens * dim)
        self.chord_embedding = nn.Embedding(config.num_chords, dim)
        self.key_embedding = nn.Embedding(config.num_keys, dim)
        self.context_norm = nn.RMSNorm(dim, eps=config.norm_eps)
        self.blocks = nn.ModuleList(
            Block(config, index in config.cross_attention_layers)
            for index in range(config.num_layers)
        )
        self.final_norm = nn.RMSNorm(dim, eps=config.norm_eps)
        self.checkpoint_blocks = False  # recompute activations in training to save memory

    def initialise(self, seed: int) -> None:
        """Draw the weights: normal(0.02); what writes to the residual is scaled down by depth.

        Biases become zero; gains and sinks keep their one and zero. Scaling as in GPT-2
        (Radford et al. 2019, section 2.3). The same seed draws other numbers than MLX.
        """
        residual_writes = 2 * self.config.num_layers + len(self.config.cross_attention_layers)
        generator = torch.Generator().manual_seed(seed)
        drawn = {}
        for name, value in self.named_parameters():
            if name.endswith("bias"):
                drawn[name] = torch.zeros_like(value)
            if value.ndim < 2:
                continue
            narrow = name.endswith(("attention.out.weight", "ffn.down.weight"))
            scale = 0.02 / residual_writes**0.5 if narrow else 0.02
            drawn[name] = scale * torch.randn(value.shape, generator=generator)
        self.load_state_dict(drawn, strict=False)

    def context(self, conditions: Conditions) -> Tensor:
        """Context tokens `(batch, emotion_tokens + slots, hidden_dim)`."""
        batch = conditions.emotion.shape[0]
        emotion = conditions.emotion.to(self.embedding.weight.dtype)
        tokens = self.emotion_out(functional.silu(self.emotion_in(emotion)))
        tokens = tokens.reshape(batch, self.config.emotion_tokens, self.config.hidden_dim)
        harmony = (
            self.chord_embedding(conditions.chords) + self.key_embedding(conditions.keys)[:, None]
        )
        return self.context_norm(torch.cat([tokens, harmony], dim=1))

    @torch.no_grad()
    def cross_keys_values(self, conditions: Conditions) -> CrossKeysValues:
        """Keys and values of the context for every cross-attention layer, made once per change.

        `conditions` must hold one chord slot: the chord in force.
        """
        context = self.context(conditions)
        return [
            self.blocks[index].cross_attention.keys_values(context)
            for index in self.config.cross_attention_layers
        ]

    def logits(self, x: Tensor) -> Tensor:
        """Logits `(batch, time, vocab_size)` of the last block's output; tied to the embedding."""
        return self.final_norm(x) @ self.embedding.weight[: self.config.vocab_size].T

    def forward(self, tokens: Tensor, conditions: Conditions, chord_index: Tensor) -> Tensor:
        """Logits of whole sequences.

        Args:
            tokens: `(batch, time)` input ids, time at most `context_length`.
            conditions: with any number of chord slots.
            chord_index: `(batch, time)` the chord slot each position sees.

        Returns:
            `(batch, time, vocab_size)` logits of the following event.
        """
        context = self.context(conditions)
        slots = torch.arange(
            -self.config.emotion_tokens, conditions.chords.shape[1], device=tokens.device
        )
        cross_mask = ((slots < 0) | (slots == chord_index[..., None]))[:, None]
        x = self.embedding(tokens)
        for block in self.blocks:
            run = checkpoint(block) if self.checkpoint_blocks else block
            x = run(x, context, cross_mask)
        return self.logits(x)

    @torch.no_grad()
    def extend(self, tokens: Tensor, cache: KVCache, cross: CrossKeysValues) -> Tensor:
        """Logits `(batch, n, vocab_size)` of `n` events that follow what the cache holds.

        Equal to `step` event by event; the cache is written and advanced.
        """
        count = tokens.shape[1]
        cache.reserve(count)
        held = cache.slot_positions()
        new = torch.arange(cache.offset, cache.offset + count, device=tokens.device)
        positions = torch.cat([held, new])
        age = new[:, None] - positions[None]
        mask = (age >= 0) & (age < cache.limit) & (positions >= 0)
        x = self.embedding(tokens)
        crosses = iter(cross)
        for index, block in enumerate(self.blocks):
            q, k, v = block.attention.project(block.attention_norm(x), cache.offset)
            keys = torch.cat([cache.keys[index], k], dim=2)
            values = torch.cat([cache.values[index], v], dim=2)
            x = block.attention.attend(x, q, keys, values, mask)
            cache.write(index, k, v)
            x = block.finish(x, next(crosses) if hasattr(block, "cross_attention") else None, None)
        cache.offset += count
        return self.logits(x)

    @torch.no_grad()
    def step(
        self,
        tokens: Tensor,
        place: Place,
        keys: list[Tensor],
        values: list[Tensor],
        cross: CrossKeysValues,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """One event, for `torch.compile`.

        Args:
            tokens: `(batch, 1)` input ids.
            place: from `KVCache.next_place`.
            keys, values: the ring, one tensor per layer; written in place.
            cross: from `cross_keys_values`.

        Returns:
            logits `(batch, vocab_size)`, and the ring after the event.
        """
        x = self.embedding(tokens)
        crosses = iter(cross)
        new_keys, new_values = [], []
        for block, old_keys, old_values in zip(self.blocks, keys, values, strict=True):
            q, k, v = block.attention.project(block.attention_norm(x), place.offset)
            new_keys.append(old_keys.index_copy_(2, place.slot, k))
            new_values.append(old_values.index_copy_(2, place.slot, v))
            x = block.attention.attend(x, q, new_keys[-1], new_values[-1], place.mask)
            x = block.finish(x, next(crosses) if hasattr(block, "cross_attention") else None, None)
        return self.logits(x)[:, 0], new_keys, new_values
