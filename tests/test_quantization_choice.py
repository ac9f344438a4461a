"""Which layers are quantised, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.quantization import (
    BITS,
    GROUP_SIZES,
    Choice,
    Packing,
    check_description,
    choose_packings,
    describe,
)

LAYERS = {
    "blocks.0.attention.qkv": 384,
    "blocks.0.attention.out": 96,
    "blocks.10.attention.qkv": 384,
    "blocks.10.cross_attention.out": 128,
    "patches": 48,
    "head": 64,
}
HERE = Path("best.safetensors")
names = st.sampled_from([*LAYERS, "qkv", "blocks.0", "attention", "out", "0", "blocks"])


def holds(name: str, part: str) -> bool:
    """The slow way to say that a name has a part."""
    pieces, wanted = name.split("."), part.split(".")
    return any(pieces[at : at + len(wanted)] == wanted for at in range(len(pieces)))


@settings(max_examples=200)
@given(
    bits=st.sampled_from(BITS),
    size=st.sampled_from(GROUP_SIZES),
    keep=st.lists(names, max_size=2),
    others=st.dictionaries(names, st.sampled_from(BITS), max_size=3),
    exceptions=st.lists(names, max_size=2, unique=True),
)
def test_every_layer_gets_what_it_was_told(
    bits: int, size: int, keep: list[str], others: dict[str, int], exceptions: list[str]
) -> None:
    told = {name: [b for part, b in others.items() if holds(name, part)] for name in LAYERS}
    kept = {name for name in LAYERS if any(holds(name, part) for part in keep)}
    usual = {name for name in LAYERS if any(holds(name, part) for part in exceptions)}
    contradiction = any(told[name] for name in kept)
    nothing = not any(
        told[name] or name not in kept | usual for name in LAYERS if name != "patches"
    )
    choice = Choice(bits, size, keep, others)
    if contradiction or nothing or "patches" in others:
        with pytest.raises(KmidiError, match=r"cannot be|no layer is left"):
            choose_packings(LAYERS, choice, exceptions)
        return
    packed = choose_packings(LAYERS, choice, exceptions)
    assert list(packed) == [name for name in LAYERS if name in packed]
    for name, inputs in LAYERS.items():
        plain = name == "patches" or (not told[name] and name in kept | usual)
        assert (name not in packed) == plain
        if plain:
            continue
        assert packed[name].bits == (told[name][-1] if told[name] else bits)
        sizes = [group for group in GROUP_SIZES if group <= size and inputs % group == 0]
        assert packed[name].group_size == max(sizes)


def test_parts_are_whole() -> None:
    assert choose_packings(LAYERS, Choice(4, layer_bits={"blocks.10": 8}))["head"].bits == 4
    with pytest.raises(KmidiError, match=r"is called 'blocks\.1'"):
        choose_packings(LAYERS, Choice(4, layer_bits={"blocks.1": 8}))


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        (Choice(5), "5 bits are not to be had; choose from 8, 6, 4"),
        (Choice(4, 16), "groups of 16 are not to be had; choose from 32, 64, 128"),
        (Choice(4, layer_bits={"head": 2}), "2 bits are not to be had"),
        (Choice(4, keep=("tail",)), "is called 'tail'; there are head, out, patches, qkv"),
        (Choice(4, keep=("",)), "is called ''"),
        (Choice(4, layer_bits={"locks": 8}), "is called 'locks'"),
        (Choice(4, keep=("bloks.0",)), r"is called 'bloks\.0'; did you mean blocks\.0\?"),
        (Choice(4, keep=("qkv",), layer_bits={"blocks.0": 8}), "both kept and given bits"),
        (Choice(4, layer_bits={"patches": 8}), "patches cannot be quantised: .* its 48 inputs"),
        (Choice(4, keep=("blocks", "head")), "no layer is left to quantise"),
    ],
)
def test_wishes_that_cannot_be_are_told(choice: Choice, complaint: str) -> None:
    with pytest.raises(KmidiError, match=complaint):
        choose_packings(LAYERS, choice)


PACKED = {"b": Packing(4, 64), "a": Packing(8, 32)}


def test_the_description_survives_json() -> None:
    described = describe(PACKED)
    assert json.loads(json.dumps(described)) == described
    assert list(described["layers"]) == ["a", "b"]
    check_description({"quantization": described}, PACKED, HERE)
    check_description({}, PACKED, HERE)
    check_description({}, {}, HERE)


@pytest.mark.parametrize(
    "told",
    [
        {},
        7,
        "4 bits",
        [],
        {"mode": "affine"},
        {"mode": "affine", "layers": 3},
        {"mode": "mxfp4", "layers": describe(PACKED)["layers"]},
        {"mode": "affine", "layers": describe(PACKED)["layers"] | {"c": {}}},
        {"mode": "affine", "layers": {"a": {"bits": 8, "group_size": 32}}},
        {"mode": "affine", "layers": describe(PACKED)["layers"] | {"a": {"bits": 4}}},
        {"mode": "affine", "layers": describe(PACKED)["layers"] | {"a": [1, {}]}},
    ],
)
def test_a_description_that_lies_is_told(told: Any) -> None:
    with pytest.raises(KmidiError, match=r"best\.safetensors is damaged: what it says of"):
        check_description({"quantization": told}, PACKED, HERE)
    with pytest.raises(KmidiError, match="is damaged"):
        check_description({"quantization": describe(PACKED)}, {}, HERE)
