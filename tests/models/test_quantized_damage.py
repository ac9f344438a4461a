"""A quantised checkpoint that is damaged or lies is refused in one sentence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from kmidi_mlx.checkpoint import load_arrays, save_arrays
from kmidi_mlx.config import MidiDataConfig, MidiGeneratorConfig, MidiTransformerConfig
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.loading import load_generator
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.models.quantization import quantize
from kmidi_mlx.quantization import DESCRIPTION, Choice, describe

Stored = tuple[dict[str, Any], dict[str, Any]]

RUN = MidiGeneratorConfig(
    model=MidiTransformerConfig(
        hidden_dim=64,
        num_layers=1,
        num_heads=1,
        ffn_dim=64,
        context_length=32,
        cross_attention_layers=(),
    ),
    data=MidiDataConfig(sequence_length=16),
)
KINDS = (
    "broken number", "missing array", "other type", "cut", "other shape", "other bits",
    "other group", "forgotten layer", "invented layer", "other mode", "no description at all",
    "extra scales",
)  # fmt: skip
NO_DESCRIPTIONS = (0, "", "affine", [], [[{}]], {}, True, {"layers": []}, {"layers": {"a": {}}})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    model = EmotionMIDITransformer(RUN.model)
    model.initialise(0)
    packed = quantize(model, Choice(4, layer_bits={"out": 8}))
    metadata = {"model": RUN.name, "config": config_to_dict(RUN), DESCRIPTION: describe(packed)}
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}, metadata


def damaged(kind: str, arrays: dict[str, Any], metadata: dict[str, Any], draw: Any) -> None:
    """Damage in place, drawing where and how."""
    layer = draw(st.sampled_from(sorted(metadata[DESCRIPTION]["layers"])))
    part = draw(st.sampled_from(["scales", "biases"]))
    any_part = f"{layer}.{draw(st.sampled_from(['weight', 'scales', 'biases']))}"
    layers = metadata[DESCRIPTION]["layers"]
    if kind == "broken number":
        value = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        broken = arrays[f"{layer}.{part}"].copy()
        broken.flat[draw(st.integers(0, broken.size - 1))] = value
        arrays[f"{layer}.{part}"] = broken
    elif kind == "missing array":
        del arrays[any_part]
    elif kind == "other type":
        types = ["int32", "uint8", "float16"] if any_part.endswith("weight") else ["uint8", "int64"]
        arrays[any_part] = np.ones(arrays[any_part].shape, draw(st.sampled_from(types)))
    elif kind == "cut":
        rows = draw(st.integers(0, len(arrays[any_part]) - 1))
        arrays[any_part] = arrays[any_part][:rows]
    elif kind == "other shape":
        arrays[any_part] = arrays[any_part].T.copy()[None]
    elif kind == "other bits":
        layers[layer]["bits"] = draw(st.sampled_from([1, 2, 3, 5, 6, 7, 16, "4", None]))
    elif kind == "other group":
        layers[layer]["group_size"] = draw(st.sampled_from([0, 32, 128, -64, "64"]))
    elif kind == "forgotten layer":
        del layers[layer]
    elif kind == "invented layer":
        name = draw(st.text(max_size=100).filter(lambda name: name not in layers))
        layers[name] = {"bits": 4, "group_size": 64}
    elif kind == "other mode":
        metadata[DESCRIPTION]["mode"] = draw(st.one_of(st.text(), st.none(), st.integers()))
    elif kind == "no description at all":
        metadata[DESCRIPTION] = draw(st.sampled_from(NO_DESCRIPTIONS))
    elif kind == "extra scales":
        arrays["final_norm.scales"] = np.ones((1, 1), np.float32)


@settings(max_examples=120)
@given(data=st.data())
def test_damage_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, stored: Stored, data: st.DataObject
) -> None:
    arrays, metadata = dict(stored[0]), copy.deepcopy(stored[1])
    kind = data.draw(st.sampled_from(KINDS))
    damaged(kind, arrays, metadata, data.draw)
    path = tmp_path_factory.mktemp("damaged") / "best.safetensors"
    save_arrays(path, arrays, metadata)
    with pytest.raises(KmidiError) as complaint:
        load_generator(path, packed=data.draw(st.booleans()))
    told = str(complaint.value)
    assert str(path) in told
    assert told.endswith(".")
    assert len(told) < 600


@settings(max_examples=30)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, stored: Stored, share: float
) -> None:
    path = tmp_path_factory.mktemp("cut") / "best.safetensors"
    save_arrays(path, *stored)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(KmidiError, match="not a readable safetensors file"):
        load_generator(path, packed=True)


def test_the_whole_file_is_fine(tmp_path: Path, stored: Stored) -> None:
    save_arrays(tmp_path / "best.safetensors", *stored)
    loaded = load_generator(tmp_path, mx.float32, packed=True)
    assert loaded.metadata == load_arrays(tmp_path / "best.safetensors")[1]
    assert loaded.model.blocks[0].attention.out.bits == 8
