"""The three models as they are exported: tensors in, tensors out, nothing remembered.

Every runtime gets the same functions with the same names of inputs and outputs. The generator's
cache stays with the caller: the step reads it and returns what to add, so nothing that is large is
copied, and the same function reads a prompt (many events) and writes music (one event).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kmidi_torch.models.emotion_recognizer import EmotionRecognizer
from kmidi_torch.models.kv_cache import REBASE_CONTEXTS
from kmidi_torch.models.layers import merge_heads, split_heads, swiglu
from kmidi_torch.models.midi_transformer import Block, EmotionMIDITransformer
from kmidi_torch.models.spectocloud_vit import Constants, SpectocloudViT

#: What a pair that must not meet gets instead of its score: finite, also in fp16.
MASKED = -1e4


class GeneratorStep(nn.Module):
    """The generator with a cache that it only reads.

    Inputs, P being the events that the cache has room for (0 or more), T those to read (1 or more):

    - `ids` int32 `(batch, T)`: input ids of the events to read, from 0 to 389.
    - `emotion` `(batch, 64)`: emotion vector; zeros: unconditional.
    - `chord`, `key` int32 `(batch,)`: ids of the harmony in force; 0: unknown.
    - `position` int32 `(1,)`: position of the first event to read, below `positions`.
    - `slots` int32 `(P,)`: position of the event that each place of the cache holds, in any order;
      negative: none.
    - `past_keys`, `past_values` `(batch, layers * heads, P, head_dim)`.

    Outputs: `logits` `(batch, T, 388)` of the event after each; `new_keys` and `new_values`
    `(batch, layers * heads, T, head_dim)`, to be put wherever `slots` will say.

    Attributes:
        positions: number of positions that the rotary table knows.
    """

    def __init__(self, model: EmotionMIDITransformer) -> None:
        super().__init__()
        config = model.config
        self.model = model
        self.limit = config.context_length
        self.positions = (REBASE_CONTEXTS + 1) * self.limit
        # in fp32 as `rope` has them: far from the start their rounding is larger than any bound
        frequencies = torch.reciprocal(torch.tensor(config.rope_periods))
        angle = torch.arange(self.positions)[:, None] * frequencies
        self._cos: Tensor
        self._sin: Tensor
        self.register_buffer("_cos", torch.cos(angle), persistent=False)
        self.register_buffer("_sin", torch.sin(angle), persistent=False)

    def forward(
        self,
        ids: Tensor,
        emotion: Tensor,
        chord: Tensor,
        key: Tensor,
        position: Tensor,
        slots: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read events; see the class."""
        model, heads = self.model, self.model.config.num_heads
        places = position + torch.arange(ids.shape[1], dtype=torch.int32, device=ids.device)
        # tables are looked up as embeddings: plain indexing becomes what few runtimes know
        cos, sin = (functional.embedding(places, table) for table in (self._cos, self._sin))
        past_age, new_age = places[:, None] - slots, places[:, None] - places
        # functions, not operators: coremltools knows no `|` of an exported program
        hidden = torch.cat(
            [
                torch.logical_or(slots < 0, past_age >= self.limit),
                torch.logical_or(new_age < 0, new_age >= self.limit),
            ],
            dim=-1,
        )
        mask = hidden.to(past_keys.dtype) * MASKED
        context = self._context(emotion, chord, key)
        x = model.embedding(ids)
        new_keys, new_values = [], []
        # one split, not a slice a layer: runtimes that interpret copy a slice number by number
        pasts = zip(past_keys.split(heads, dim=1), past_values.split(heads, dim=1), strict=True)
        for block, past in zip(model.blocks, pasts, strict=True):
            x, keys, values = self._attend(block, x, cos, sin, mask, *past)
            new_keys.append(keys)
            new_values.append(values)
            if hasattr(block, "cross_attention"):
                x = self._look(block, x, context)
            gate, up = torch.chunk(block.ffn.gate_up(rms_norm(x, block.ffn_norm)), 2, dim=-1)
            x = x + block.ffn.down(swiglu(gate, up))
        x = rms_norm(x, model.final_norm)
        logits = functional.linear(x, model.embedding.weight[: model.config.vocab_size])
        return (
            typed(logits, torch.float32),
            torch.cat(new_keys, dim=1),
            torch.cat(new_values, dim=1),
        )

    def _context(self, emotion: Tensor, chord: Tensor, key: Tensor) -> Tensor:
        """What the cross-attention looks at: `(batch, emotion_tokens + 1, hidden_dim)`."""
        model, config = self.model, self.model.config
        emotion = typed(emotion, model.embedding.weight.dtype)
        tokens = model.emotion_out(functional.silu(model.emotion_in(emotion)))
        tokens = tokens.reshape(-1, config.emotion_tokens, config.hidden_dim)
        harmony = (model.chord_embedding(chord) + model.key_embedding(key))[:, None]
        return rms_norm(torch.cat([tokens, harmony], dim=1), model.context_norm)

    def _attend(
        self,
        block: Block,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Self-attention over the cache and the new events, with the sink as one more score."""
        attention, past = block.attention, past_keys.shape[2]
        heads = attention.num_heads
        qkv = split_heads(attention.qkv(rms_norm(x, block.attention_norm)), 3 * heads)
        turned = rotate(qkv[:, : 2 * heads], cos, sin)
        queries, keys, values = turned[:, :heads], turned[:, heads:], qkv[:, 2 * heads :]
        queries = queries * attention.head_dim**-0.5
        scores = torch.cat(
            [queries @ past_keys.transpose(-1, -2), queries @ keys.transpose(-1, -2)], dim=-1
        )
        scores = scores + mask
        sink = attention.sinks[:, None, None].expand(*scores.shape[:-1], 1)
        shares = torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)
        found = shares[..., :past] @ past_values + shares[..., past:-1] @ values
        return x + attention.out(merge_heads(found)), keys, values

    def _look(self, block: Block, x: Tensor, context: Tensor) -> Tensor:
        """Cross-attention to emotion and harmony."""
        cross = block.cross_attention
        keys, values = cross.keys_values(context)
        queries = split_heads(cross.query(rms_norm(x, block.cross_norm)), cross.num_heads)
        scores = (queries * cross.head_dim**-0.5) @ keys.transpose(-1, -2)
        return x + cross.out(merge_heads(torch.softmax(scores, dim=-1) @ values))


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """RMSNorm written out (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    wide = typed(x, torch.float32)  # squares are too large for fp16
    square = torch.mean(torch.square(wide), dim=-1, keepdim=True)
    return x * typed(torch.rsqrt(square + float(norm.eps or 0.0)), x.dtype) * norm.weight


def typed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x` as `dtype`; where it is that already, nothing is added to an exported graph."""
    return x if x.dtype == dtype else x.to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `(batch, heads, time, head_dim)` with angles `(time, head_dim / 2)`."""
    first, second = torch.chunk(x.to(cos.dtype), 2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


class CloudPass(nn.Module):
    """Spectocloud for a number of points that is fixed at export.

    Inputs: `windows` `(batch, 128, 64)`, `features` `(batch, 32)`, `emotion` `(batch, 64)`; output:
    `cloud` `(batch, points, 10)`, see `SpectocloudViT.forward`.
    """

    def __init__(self, model: SpectocloudViT, points: int) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            constants = model.constants(points)
        self._queries: Tensor
        self.register_buffer("_queries", constants.queries, persistent=False)
        for index, bias in enumerate(constants.biases):
            # a copy of its own: a view would bring all that it is a view of
            self.register_buffer(f"_bias_{index}", bias.contiguous(), persistent=False)
        self._blocks = len(constants.biases)

    def forward(self, windows: Tensor, features: Tensor, emotion: Tensor) -> Tensor:
        """Draw clouds; see the class."""
        biases = [self.get_buffer(f"_bias_{index}") for index in range(self._blocks)]
        cloud: Tensor = self.model(windows, features, emotion, Constants(biases, self._queries))
        return cloud


class RecognizerPass(nn.Module):
    """The recogniser for whole clips.

    Inputs: `frames` `(batch, time, bands)` as `kmidi_mlx.audio.hearing.hear` gives them, `counts`
    int32 `(batch,)`: how many of them count. Outputs: `numbers` `(batch, 3)` valence, arousal,
    intensity; `probabilities` `(batch, labels)`, calibrated; `cues` `(batch, num_cues)`; outputs
    without columns are left out.
    """

    def __init__(self, model: EmotionRecognizer, temperature: float) -> None:
        super().__init__()
        self.model = model
        self._temperature = temperature

    def forward(self, frames: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        """Recognise the emotion of clips; see the class."""
        estimate = self.model(frames, counts)
        found = [estimate.numbers]
        if self.model.config.labels:
            found.append(torch.softmax(estimate.logits / self._temperature, dim=-1))
        if self.model.config.num_cues:
            found.append(estimate.cues)
        return tuple(found)

    @property
    def outputs(self) -> list[str]:
        """Names of what `forward` returns."""
        config = self.model.config
        labelled = ["probabilities"] * bool(config.labels)
        return ["numbers", *labelled, *["cues"] * bool(config.num_cues)]
