from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kmidi_mlx.checkpoint import BEST
from kmidi_mlx.config import EmotionRecognizerConfig, SpectocloudConfig
from kmidi_mlx.model_card import MARK, card_of, licence_of, licence_on
from kmidi_mlx.sharing import is_shared, read_parts, without_paths


def test_a_card_says_what_the_metadata_say(with_adapter: Path) -> None:
    model, adapter = read_parts(with_adapter)
    card = card_of([model, adapter], "user/tiny", "cc-by-4.0")
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    assert {"kmidi", "safetensors", "midi"} <= set(front["tags"])
    assert MARK in card
    assert "# tiny" in card
    assert "**Trained on synthetic practice music" in card
    assert f"| parameters | {model.parameters:,} |" in card
    assert (
        f"| validation | {model.metadata['metric']:.4f} nats per event on held-out music |" in card
    )
    assert "| licences of the data | MIT |" in card
    assert "| synthetic data | yes |" in card
    assert "| optimiser steps | 20 |" in card
    assert "| format version | 1 |" in card
    assert "## Adapter `mine`" in card
    assert "| trained over | model (digest 0123456789abcdef) |" in card
    assert "kmidi pull user/tiny --out tiny\nkmidi generate --checkpoint tiny" in card
    assert "kmidi generate --checkpoint tiny --adapter mine" in card
    assert "## Limits" in card
    assert licence_on(card) == "cc-by-4.0"


def test_a_single_file_can_be_read(with_adapter: Path) -> None:
    (part,) = read_parts(with_adapter / BEST)
    assert part.name == ""
    (adapter,) = read_parts(with_adapter / "adapters" / "mine")
    assert (adapter.name, adapter.parameters) == ("mine", 256)


@pytest.mark.parametrize("config", [SpectocloudConfig(), EmotionRecognizerConfig()])
def test_every_model_has_a_card(
    with_adapter: Path, config: SpectocloudConfig | EmotionRecognizerConfig
) -> None:
    part = replace(read_parts(with_adapter)[0], config=config, metadata={"config": {}})
    card = card_of([part], "user/tiny", None)
    assert f"| kind | {config.name.replace('_', chr(92) + '_')} |" in card
    assert "| validation | unknown |" in card
    assert "| licences of the data | unknown |" in card
    assert "not stated" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown"


def test_what_metadata_say_cannot_leave_its_place(with_adapter: Path) -> None:
    part = read_parts(with_adapter)[0]
    evil = "x |\n\n---\n<script>alert(1)</script> [a](javascript:b) `c`"
    hostile = replace(
        part, metadata={**part.metadata, "data_labels": evil, "data_licences": [evil]}
    )
    card = card_of([hostile], "user/tiny", licence_of([hostile], None))
    assert "<script>" not in card
    assert "\n| where labels came from | x \\| --- &lt;script&gt;" in card
    assert card.count("\n---\n") == 1  # the end of the front matter
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "other"


def test_the_licence_of_the_data_is_that_of_the_weights_if_it_is_one(with_adapter: Path) -> None:
    model, adapter = read_parts(with_adapter)
    assert licence_of([model, adapter], None) == "MIT"
    other = replace(adapter, metadata={**adapter.metadata, "data_licences": ["CC0-1.0"]})
    assert licence_of([model, other], None) is None
    assert licence_of([model, other], "mine") == "mine"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: 'own-terms'\n---\n", "own-terms"),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("", None),
        ("---\n" * 3, None),
    ],
)
def test_the_licence_that_a_card_states(card: str, licence: str | None) -> None:
    assert licence_on(card) == licence


def test_paths_lose_all_but_their_names() -> None:
    config = {
        "name": "x",
        "data": {"path": "/home/me/music/pop/", "points": 3, "manifest": "C:\\Users\\me\\a.jsonl"},
        "adapter": {"base": "checkpoints/big", "targets": ["qkv:qv"]},
        "empty": {"path": ""},
    }
    assert without_paths(config) == {
        "name": "x",
        "data": {"path": "pop", "points": 3, "manifest": "a.jsonl"},
        "adapter": {"base": "big", "targets": ["qkv:qv"]},
        "empty": {"path": ""},
    }


def test_names_that_are_shared() -> None:
    shared = ("best.safetensors", "config.yaml", "README.md", "metrics.jsonl")
    assert all(map(is_shared, shared))
    assert is_shared("adapters/my-style_2.0/adapter.safetensors")
    for name in (
        "best.pt",
        "Best.safetensors",
        "a/best.safetensors",
        "adapters/x/best.safetensors",
    ):
        assert not is_shared(name)
