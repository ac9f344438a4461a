"""The generator's step with the draw of the next event in the same graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import VOCABULARY_SIZE
from kmidi_mlx.music.knobs import Knobs, pack, unpack
from kmidi_torch.export.modules import GeneratorStep
from kmidi_torch.generation import sampler


class _Effects:
    """`grammar.Tables.effects`, looked up as an embedding: indexing with int32 is invalid ONNX."""

    def __init__(self, flat: Tensor) -> None:
        self._flat = flat

    def __getitem__(self, event: Tensor) -> Tensor:
        return functional.embedding(event, self._flat).reshape(1, grammar.ROWS, -1)


class SamplingStep(nn.Module):
    """`GeneratorStep`, and then one event drawn from the last logits as `sampler.draw` does.

    Inputs after those of the step: `state` `(6, 388)` of `kmidi_mlx.music.grammar`, after all
    events that were read; `noise` `(388,)`; `knobs` `(11,)`, both of `kmidi_mlx.music.knobs`. One
    row: no guidance, whatever the knobs say; two: the second is the unconditional model.

    Outputs after those of the step: `event` int32 `(1,)` and `new_state`, the state after it.
    """

    def __init__(self, step: GeneratorStep) -> None:
        super().__init__()
        self.step = step
        table = grammar.tables()
        flat = table.effects.reshape(len(table.effects), -1)
        for name, value in table._replace(effects=flat)._asdict().items():
            self.register_buffer(f"_{name}", torch.from_numpy(value), persistent=False)

    @property
    def state_shape(self) -> tuple[int, int]:
        """Shape of `state`."""
        return (grammar.ROWS, VOCABULARY_SIZE)

    @property
    def noise_shape(self) -> tuple[int]:
        """Shape of `noise`."""
        return (VOCABULARY_SIZE,)

    @property
    def knob_names(self) -> list[str]:
        """What each entry of `knobs` is."""
        return [*Knobs._fields[:-1], *grammar.Limits._fields]

    @property
    def knobs_shape(self) -> tuple[int]:
        """Shape of `knobs`."""
        return pack(SamplingConfig()).shape

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
        state: Tensor,
        noise: Tensor,
        knobs: Tensor,
    ) -> tuple[Tensor, ...]:
        """Read events and draw the next; see the class."""
        found = self.step(ids, emotion, chord, key, position, slots, past_keys, past_values)
        last = found[0][:, -1]
        # a batch of one twice: guidance then adds nothing times its scale, exactly
        rows = torch.cat([last[:1], last[-1:]])
        table = grammar.Tables(*(self.get_buffer(f"_{name}") for name in grammar.Tables._fields))
        table = table._replace(effects=_Effects(table.effects))
        event = sampler.draw(rows, noise, state, unpack(knobs), table)
        return (*found, event, grammar.advance(state, event, table, torch))
