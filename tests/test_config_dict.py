from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.config_file import config_from_dict, config_to_dict, load_config
from kmidi_mlx.errors import KmidiError

CHANGED = [
    "model.cross_attention_layers=[1, 3]",
    "model.num_heads=2",
    "model.hidden_dim=64",
    'data.path="a folder/mit Umläuten ☃"',
    "optimizer.learning_rate=1e-5",
    "optimizer.weight_decay=0",
    "training.gradient_checkpointing=true",
    "training.precision=bf16",
    "sampling.temperature=1",
]


def changed() -> MidiGeneratorConfig:
    return load_config("midi_generator", [], CHANGED)


@pytest.mark.parametrize("config", [MidiGeneratorConfig(), changed()])
def test_a_run_survives_the_way_through_json(config: MidiGeneratorConfig) -> None:
    plain = json.loads(json.dumps(config_to_dict(config), allow_nan=False))
    assert config_from_dict(plain, "here") == config
    assert config_to_dict(config_from_dict(plain, "here")) == config_to_dict(config)


def test_types_come_back_too() -> None:
    config = config_from_dict(json.loads(json.dumps(config_to_dict(changed()))), "here")
    assert config.model.cross_attention_layers == (1, 3)
    assert type(config.sampling.temperature) is float
    assert type(config.training.gradient_checkpointing) is bool
    hash(config)


def test_whole_numbers_do_for_fractions() -> None:
    plain = {"name": "midi_generator", "sampling": {"temperature": 1}}
    temperature = config_from_dict(plain, "here").sampling.temperature
    assert temperature == 1.0
    assert type(temperature) is float


def test_what_an_older_file_lacks_gets_its_default() -> None:
    plain = config_to_dict(changed())
    del plain["training"]["patience"]
    del plain["sampling"]
    config = config_from_dict(plain, "here")
    assert config.training.patience == MidiGeneratorConfig().training.patience
    assert config.sampling == MidiGeneratorConfig().sampling
    assert config.training.precision == "bf16"


@pytest.mark.parametrize(
    ("section", "key", "value", "complaint"),
    [
        ("training", "batch_sise", 4, "unknown option training.batch_sise; did you mean "
         "training.batch_size?"),
        ("training", "hidden_dim", 4, "did you mean model.hidden_dim?"),
        ("training", "batch_size", "4", "training.batch_size: expected a whole number."),
        ("training", "batch_size", 4.0, "training.batch_size: expected a whole number."),
        ("training", "batch_size", True, "training.batch_size: expected a whole number."),
        ("training", "batch_size", None, "training.batch_size: expected a whole number."),
        ("training", "batch_size", 0, "training.batch_size: 0 is below the smallest"),
        ("training", "precision", "fp8", "training.precision: 'fp8' is not one of fp32"),
        ("training", "gradient_checkpointing", 1, "expected true or false."),
        ("optimizer", "learning_rate", "fast", "optimizer.learning_rate: expected a number."),
        ("optimizer", "learning_rate", False, "optimizer.learning_rate: expected a number."),
        ("optimizer", "learning_rate", float("nan"), "nan is not a finite number"),
        ("data", "path", 5, "data.path: expected text."),
        ("data", "path", ["a"], "data.path: expected text."),
        ("model", "cross_attention_layers", [0, "2"], "expected a list of whole numbers"),
        ("model", "cross_attention_layers", 0, "expected a list of whole numbers"),
        ("model", "cross_attention_layers", [2, 0], "must be rising"),
        ("model", "num_heads", 7, "model.num_heads: 7 heads do not divide"),
        ("data", "sequence_length", 4096, "data.sequence_length: 4096 is longer than"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_its_place(
    section: str, key: str, value: Any, complaint: str
) -> None:
    plain = config_to_dict(MidiGeneratorConfig())
    plain[section][key] = value
    with pytest.raises(KmidiError) as caught:
        config_from_dict(plain, "x/best.safetensors")
    text = str(caught.value)
    assert text.startswith("x/best.safetensors: ")
    assert complaint in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "midi_generater"}, "unknown model midi_generater; did you mean midi_generator?"),
        ({"name": None}, "unknown model None"),
        ({"name": ["midi_generator"]}, "unknown model"),
        ({"trainig": {}}, "unknown section trainig; did you mean training?"),
        ({"training": []}, "training"),
        ({"training": None}, "training"),
    ],
)
def test_what_is_no_run_is_an_error(change: dict[str, Any], complaint: str) -> None:
    plain = copy.deepcopy(config_to_dict(MidiGeneratorConfig())) | change
    with pytest.raises(KmidiError) as caught:
        config_from_dict(plain, "x/best.safetensors")
    assert str(caught.value).startswith("x/best.safetensors: ")
    assert complaint in str(caught.value)


def test_nothing_is_no_run() -> None:
    with pytest.raises(KmidiError, match=r"^here: unknown model"):
        config_from_dict({}, "here")


def test_the_given_data_is_left_alone() -> None:
    plain = config_to_dict(changed())
    before = copy.deepcopy(plain)
    config_from_dict(plain, "here")
    assert plain == before
