from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmidi_mlx.config import (
    MidiDataConfig,
    MidiGeneratorConfig,
    MidiTransformerConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainingConfig,
)
from kmidi_mlx.config_file import config_to_dict, describe_options, load_config, save_config
from kmidi_mlx.config_section import Section
from kmidi_mlx.errors import KmidiError

MODEL = "midi_generator"
CONFIGS = Path(__file__).parents[1] / "configs"


def load_text(folder: Path, text: str | bytes, *overrides: str) -> MidiGeneratorConfig:
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(MODEL, [path], overrides)


def complaint(folder: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(KmidiError) as caught:
        load_text(folder, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert len(message) < 700
    return message.replace(f"{folder}/", "")


def refusal(files: list[Path], overrides: list[str]) -> str:
    try:
        load_config(MODEL, files, overrides)
    except KmidiError as error:
        return str(error)
    return ""


def test_no_files_are_the_defaults() -> None:
    assert load_config(MODEL) == MidiGeneratorConfig()


@pytest.mark.parametrize(
    "text", ["", "# only a comment\n", "---\n", "\ufeff", "model:\n  # none\n"]
)
def test_an_empty_file_is_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_text(tmp_path, text) == MidiGeneratorConfig()


def test_flag_wins_over_later_file_wins_over_earlier_file(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("training: {seed: 1, epochs: 2, max_steps: 3}\noptimizer: {beta1: 0.5}\n")
    second.write_text("training: {seed: 11, epochs: 12}\n")
    config = load_config(MODEL, [first, second], ["training.seed=21", "training.seed=22"])
    assert (config.training.seed, config.training.epochs, config.training.max_steps) == (22, 12, 3)
    assert config.optimizer.beta1 == 0.5
    assert config.training.batch_size == MidiGeneratorConfig().training.batch_size


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("2.5e-4", 2.5e-4),
        (".5", 0.5),
        ("1.", 1.0),
        ("+0.25", 0.25),
        ("1", 1.0),
        ("0", 0.0),
    ],
)
def test_numbers(tmp_path: Path, text: str, value: float) -> None:
    for config in (
        load_text(tmp_path, f"optimizer:\n  learning_rate: {text}\n"),
        load_config(MODEL, overrides=[f"optimizer.learning_rate={text}"]),
    ):
        assert config.optimizer.learning_rate == value
        assert isinstance(config.optimizer.learning_rate, float)


@pytest.mark.parametrize(
    "text",
    [
        "1:30",
        "1_000",
        "0o17",
        "0x10",
        "010",
        "00",
        "1e",
        "++1",
        "1.2.3",
        "'\"64\"'",
        "'1'",
        "yes",
        "64k",
        "1,5",
        "2024-01-01",
        "e5",
        ".",
    ],
)
def test_what_only_looks_like_a_number_is_text(tmp_path: Path, text: str) -> None:
    message = complaint(tmp_path, f"training:\n  max_minutes: {text}\n")
    assert message.startswith("run.yaml, line 2: training.max_minutes: expected a number, found ")
    assert 'the text "' in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("batch_size: '64'", 'expected a whole number, found the text "64"'),
        ("batch_size: true", "expected a whole number, found true"),
        ("batch_size: 1.5", "expected a whole number, found 1.5"),
        ("batch_size: 2.0", "expected a whole number, found 2.0"),
        ("batch_size: 1e3", "expected a whole number, found 1e3"),
        ("batch_size: [64]", "expected a whole number, found a list"),
        ("batch_size: {a: 1}", "expected a whole number, found a mapping"),
        ("batch_size:", "expected a whole number, found nothing"),
        ("batch_size: null", "expected a whole number, found null"),
        ("batch_size: -1", "-1 is below the smallest allowed value 1"),
        ("batch_size: 99999999999999999999", "is too large"),
        (f"batch_size: {'9' * 5000}", "has too many digits"),
        ("max_minutes: true", "expected a number, found true"),
        ("max_minutes: .nan", "expected a number, found the text"),
        ("max_minutes: .inf", "expected a number, found the text"),
        ("max_minutes: 1e999", "inf is not a finite number"),
        ("max_minutes: ~", "expected a number, found ~"),
        ("gradient_checkpointing: yes", 'expected true or false, found the text "yes"'),
        ("gradient_checkpointing: off", 'expected true or false, found the text "off"'),
        ("gradient_checkpointing: 1", "expected true or false, found 1"),
        ("gradient_checkpointing: 'true'", 'expected true or false, found the text "true"'),
        ("precision: 16", "expected text, found 16; put it in quotes"),
        ("precision: null", "expected text, found null; put it in quotes"),
        ("precision: fp17", "'fp17' is not one of fp32, fp16, bf16"),
        ('precision: "a\\0b"', "has a control character"),
        ("precision: " + "a" * 4096, "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' is not one of"),
        ("precision: " + "a" * 4097, "the text is longer than 4096 characters"),
    ],
)
def test_wrong_values_name_file_line_and_option(tmp_path: Path, line: str, expected: str) -> None:
    message = complaint(tmp_path, f"# a comment\ntraining:\n  epochs: 3\n  {line}\n")
    key = line.partition(":")[0]
    assert message.startswith(f"run.yaml, line 4: training.{key}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3", "cross_attention_layers: expected a list of whole numbers such as [0, 2], found 3"),
        ("[0, two]", 'cross_attention_layers[1]: expected a whole number, found the text "two"'),
        ("[0, [1]]", "cross_attention_layers[1]: expected a whole number, found a list"),
        ("[2, 1]", "cross_attention_layers: must be rising"),
        ("[-1]", "cross_attention_layers: -1 is below"),
        ("[0, 8]", "cross_attention_layers: names layer 8 but num_layers is 8"),
    ],
)
def test_wrong_lists(tmp_path: Path, value: str, expected: str) -> None:
    message = complaint(tmp_path, f"model:\n  cross_attention_layers: {value}\n")
    assert message.startswith(f"run.yaml, line 2: model.{expected}")
    flag = f"model.cross_attention_layers={value}"
    assert complaint(tmp_path, "", flag).startswith(f"--set {flag}: model.{expected}")


def test_lists_become_tuples(tmp_path: Path) -> None:
    text = "model:\n  cross_attention_layers:\n  - 1\n  - 3\n"
    assert load_text(tmp_path, text).model.cross_attention_layers == (1, 3)
    config = load_text(tmp_path, text, "model.cross_attention_layers=[0,2]")
    assert config.model.cross_attention_layers == (0, 2)
    assert load_text(tmp_path, text, "model.cross_attention_layers=[]").model == (
        MidiTransformerConfig(cross_attention_layers=())
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modle:\n  num_layers: 2\n", "line 1: unknown section modle; did you mean model?"),
        ("model:\n  hiden_dim: 2\n", "line 2: unknown option model.hiden_dim; did you mean "
         "model.hidden_dim?"),
        ("zzzz: {}\n", "line 1: unknown section zzzz; valid are model, data, optimizer, "),
        ("\nbatch_size: 4\n", "line 2: batch_size is an option of a section; did you mean "
         "training.batch_size?"),
        ("model.num_layers: 4\n", "line 1: write num_layers: below model: instead"),
        ("data:\n  batch_size: 4\n", "line 2: unknown option data.batch_size; did you mean "
         "training.batch_size?"),
        ("1: 2\n", "line 1: unknown section 1; valid are"),
        ("[1]: 2\n", "line 1: expected a name before the colon."),
        ("training: 4\n", "line 1: expected options of training, key: value, found 4."),
        ("training: null\n", "line 1: expected options of training, key: value, found null."),
        ("training: [4]\n", "line 1: expected options of training, key: value, found a list."),
        ("- model\n", "line 1: expected sections of options (model:, data:, …), found a list."),
        ("hello\n", "line 1: expected sections of options (model:, data:, …), found the text "
         '"hello".'),
    ],
)  # fmt: skip
def test_unknown_names_suggest_the_nearest(tmp_path: Path, text: str, expected: str) -> None:
    assert complaint(tmp_path, text).startswith(f"run.yaml, {expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training:\n  seed: 1\n  epochs: 2\n  seed: 3\n", "line 4: seed was already given in "
         "line 2;"),
        ("training:\n  seed: 1\ntraining:\n  epochs: 2\n", "line 3: training was already given in "
         "line 1;"),
        ("training: &a\n  seed: 1\n", "line 1: anchors and aliases are not allowed"),
        ("training:\n  seed: *a\n", "line 2: anchors and aliases are not allowed"),
        ("training:\n  <<: {seed: 1}\n", "line 2: merge keys are not allowed"),
        ("training:\n  seed: !!int '1'\n", "line 2: the tag tag:yaml.org,2002:int is not allowed"),
        ("training: !!python/object:os.system {}\n", "line 1: the tag tag:yaml.org,2002:python"),
        ("training:\n  seed: ! 1\n", "line 2: the tag ! is not allowed"),
        ("training:\n  seed: 1\n---\ndata: {}\n", "line 3: a second document starts here"),
        ("training:\n\tseed: 1\n", "line 2: a tab is used for indentation; use spaces."),
        ("training: {seed: 1\n", "line 2: not valid YAML while parsing a flow mapping"),
        ("training:\n  seed: 1\n epochs: 2\n", "line 3: not valid YAML"),
        ("a: " + "[" * 100_000, "line 1: nested too deeply"),
        ("{a: " * 5_000, "line 1: nested too deeply"),
        ("a: [" + "0," * 100_000 + "]", "line 1: more than 10000 values"),
        ("training:\n  seed: \x07\n", "line 2: the character U+0007 is not text."),
        ('training:\n  precision: "\\U00110000"\n', "line 2: not valid YAML"),
        (b"training:\n  precision: \xff\n", "line 2: not UTF-8 text"),
        ("training: {}\n".encode("utf-16"), "line 1: not UTF-8 text"),
    ],
)  # fmt: skip
def test_what_has_no_place_in_a_configuration(
    tmp_path: Path, text: str | bytes, expected: str
) -> None:
    assert complaint(tmp_path, text).startswith(f"run.yaml, {expected}")


def test_a_document_that_would_unfold_to_gigabytes_is_refused(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi")]  # noqa: B905
    assert "anchors and aliases" in complaint(tmp_path, "\n".join(lines))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (2**20 + 1))
    for path, expected in [
        (tmp_path, "is a folder"),
        (tmp_path / "none.yaml", "does not exist"),
        (large, "is larger than 1 MiB"),
        (Path("a\0b"), "cannot read"),
    ]:
        with pytest.raises(KmidiError, match=expected):
            load_config(MODEL, [path])
    large.write_bytes(b"#" * 2**20)
    assert load_config(MODEL, [large]) == MidiGeneratorConfig()


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("training.seed", "expected section.option=value."),
        ("seed=1", "expected section.option=value."),
        ("", "expected section.option=value."),
        ("trainin.seed=1", "unknown section trainin; did you mean training?"),
        ("training.sed=1", "unknown option training.sed; did you mean training.seed?"),
        ("training.seed.x=1", "unknown option training.seed.x; did you mean training.seed?"),
        ("training.seed=", "training.seed has no value after the equals sign."),
        ("training.seed=x", 'training.seed: expected a whole number, found the text "x".'),
        ("training.seed=-1", "training.seed: -1 is below the smallest allowed value 0."),
        ("training.seed=*a", "anchors and aliases are not allowed"),
        ("training.seed={a", "not valid YAML"),
        ("data.path=2024", "data.path: expected text, found 2024; put it in quotes."),
    ],
)
def test_wrong_flags_name_the_flag(tmp_path: Path, flag: str, expected: str) -> None:
    assert complaint(tmp_path, "", flag).startswith(f"--set {flag}: {expected}")


def test_a_flag_with_line_breaks_still_gives_one_line(tmp_path: Path) -> None:
    message = complaint(tmp_path, "", "training.seed=1\n---\n2")
    assert message.startswith("--set training.seed=1\\n---\\n2: a second document")


def test_combinations_name_the_place_of_the_option_at_fault(tmp_path: Path) -> None:
    both = "model:\n  hidden_dim: 512\n  num_heads: 6\n"
    assert complaint(tmp_path, both) == (
        "run.yaml, line 3: model.num_heads: 6 heads do not divide hidden_dim 512."
    )
    # num_heads was not set anywhere: the place of the option that broke the default is named
    assert complaint(tmp_path, "model:\n  hidden_dim: 512\n") == (
        "run.yaml, line 2: model.hidden_dim does not fit model.num_heads: "
        "6 heads do not divide hidden_dim 512."
    )
    assert complaint(tmp_path, "", "model.num_layers=2").startswith(
        "--set model.num_layers=2: model.num_layers does not fit model.cross_attention_layers: "
    )
    assert complaint(tmp_path, both, "model.num_heads=7").startswith(
        "--set model.num_heads=7: model.num_heads: 7 heads do not divide"
    )


def test_combinations_across_sections(tmp_path: Path) -> None:
    text = "data:\n  sequence_length: 4096\nmodel:\n  context_length: 512\n"
    assert complaint(tmp_path, text).startswith("run.yaml, line 2: data.sequence_length: 4096 is ")
    assert complaint(tmp_path, "model:\n  context_length: 512\n").startswith(
        "run.yaml, line 2: model.context_length does not fit data.sequence_length: 1024 is "
    )


def test_the_name_in_a_file_has_to_be_the_model(tmp_path: Path) -> None:
    assert load_text(tmp_path, f"name: {MODEL}\n") == MidiGeneratorConfig()
    assert complaint(tmp_path, "data: {}\nname: spectocloud\n") == (
        "run.yaml, line 2: name: this is a configuration of spectocloud, but the run is one of "
        "midi_generator; give a file of that model."
    )
    assert "expected the name of a model, found a list" in complaint(tmp_path, "name: [a]\n")


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(
        KmidiError, match="unknown model midi_genrator; did you mean midi_generator"
    ):
        load_config("midi_genrator")


def _values(section: type[Section], name: str, kind: Any, metadata: Any) -> st.SearchStrategy[Any]:
    low, high, choices = metadata["low"], metadata["high"], metadata["choices"]
    if choices is not None:
        return st.sampled_from(choices)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(int(low), int(high) if high is not None else 2**63 - 1)
    if kind is float:
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    assert kind is str, (section, name)
    special = st.sampled_from(
        ["", "yes", "null", "1e5", "a: b", "# x", "~", "é\u2028\ufeff😀", "..."]
    )
    return special | st.text(st.characters(exclude_categories=["Cc", "Cs"]))


def _sections(section: type[Section], skip: tuple[str, ...] = ()) -> st.SearchStrategy[Section]:
    kinds = typing.get_type_hints(section)
    return st.fixed_dictionaries(
        {},
        optional={
            item.name: _values(section, item.name, kinds[item.name], item.metadata)
            for item in dataclasses.fields(section)
            if item.name not in skip
        },
    ).map(lambda values: section(**values))


@st.composite
def configs(draw: st.DrawFn) -> MidiGeneratorConfig:
    layers = draw(st.integers(1, 128))
    heads = draw(st.integers(1, 32))
    model = MidiTransformerConfig(
        hidden_dim=heads * draw(st.integers(32, 128)) * 2,
        num_layers=layers,
        num_heads=heads,
        cross_attention_layers=tuple(sorted(draw(st.sets(st.integers(0, layers - 1))))),
        context_length=draw(st.integers(65536, 2**62)),
        rope_base=draw(st.floats(1.0, 1e300)),
    )
    pitches = ("lowest_pitch", "highest_pitch")
    return MidiGeneratorConfig(
        model=model,
        data=typing.cast(MidiDataConfig, draw(_sections(MidiDataConfig))),
        optimizer=typing.cast(OptimizerConfig, draw(_sections(OptimizerConfig))),
        training=typing.cast(TrainingConfig, draw(_sections(TrainingConfig))),
        sampling=typing.cast(SamplingConfig, draw(_sections(SamplingConfig, pitches))),
    )


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(config=configs())
def test_loading_what_was_saved_gives_it_back(tmp_path: Path, config: MidiGeneratorConfig) -> None:
    path = tmp_path / "config.yaml"
    save_config(config, path)
    assert load_config(config.name, [path]) == config
    plain = config_to_dict(config)
    assert json.loads(json.dumps(plain)) == plain
    # other readers of YAML see the same values
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == plain


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pieces=st.lists(
        st.sampled_from(
            [*"[]{}:,-?|>'\"#&*!%@`\\ \t\n~<.", "\n  ", "model", "seed: ", "1", "---\n", "\\x", "é"]
        )
        | st.text(max_size=2),
        max_size=30,
    )
)
def test_any_text_is_loaded_or_refused_in_one_sentence(tmp_path: Path, pieces: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes("".join(pieces).encode("utf-8", "surrogatepass"))
    for files, overrides in [([path], []), ([], [f"training.seed={''.join(pieces)}"])]:
        assert "\n" not in refusal(files, overrides)


def test_saved_file_starts_with_the_name_and_explains_every_option(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(MidiGeneratorConfig(), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"name: {MODEL}"
    options = [line for line in lines if line.startswith("  ")]
    assert all(re.fullmatch(r"  \w+: \S.*  # \w.*", line) for line in options)
    count = sum(len(values) for values in config_to_dict(MidiGeneratorConfig()).values()) - len(
        MODEL
    )
    assert len(options) == count


def test_describe_options_lists_every_option_with_its_default() -> None:
    text = describe_options(MidiGeneratorConfig)
    for section, values in config_to_dict(MidiGeneratorConfig()).items():
        for key in values if section != "name" else ():
            assert len(re.findall(rf"^  {section}\.{key} ", text, re.MULTILINE)) == 1
    assert re.search(r"training\.precision +fp32 .*\(fp32, fp16, bf16\)", text)
    assert re.search(r"model\.hidden_dim +384 .*\(64 to 8192\)", text)


def test_shipped_files(tmp_path: Path) -> None:
    reference, overlay = CONFIGS / "midi_generator.yaml", CONFIGS / "m4_16gb.yaml"
    config = load_config(MODEL, [reference])
    assert (config.model.hidden_dim, config.model.num_layers, config.model.num_heads) == (384, 8, 6)
    assert (config.training.batch_size, config.training.max_steps) == (64, 30000)
    assert (config.optimizer.learning_rate, config.optimizer.beta2) == (3e-4, 0.95)
    small = load_config(MODEL, [reference, overlay])
    assert small.model == config.model
    assert (small.training.batch_size, small.training.grad_accum_steps) == (2, 8)
    assert (small.training.precision, small.data.sequence_length) == ("fp16", 512)
    assert small.training.gradient_checkpointing
