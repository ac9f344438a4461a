"""Configuration files: strict YAML and `--set section.option=value` in, the whole run out.

What a flag says wins over a file, a later file over an earlier one, a file over the defaults of
`kmidi_mlx.config`. Every complaint names the file and line, or the flag, where the value was set.
"""

from __future__ import annotations

import dataclasses
import re
import typing
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import yaml

from kmidi_mlx import strict_yaml
from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.config import RUN_CONFIGS, RunConfig
from kmidi_mlx.config_section import ConfigError, Section
from kmidi_mlx.errors import KmidiError, nearest
from kmidi_mlx.strict_yaml import Source, shown

__all__ = [
    "config_from_dict",
    "config_to_dict",
    "describe_options",
    "load_config",
    "load_sections",
    "save_config",
]

Config = TypeVar("Config", bound="Sections")

_LARGEST_INT = 2**63 - 1
_LONGEST_NUMBER = 40  # characters; longer ones are mistakes, and slow to convert
_LONGEST_TEXT = 4096  # characters; as long as a path can be
_WANTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple[int, ...]: "a list of whole numbers such as [0, 2]",
    tuple[str, ...]: "a list of texts such as [happy, sad]",
}


class Sections(Protocol):
    """A configuration: a dataclass of sections, all with defaults, and a name for its files."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True)
class _Setting:
    value: Any
    place: str


@dataclass(frozen=True)
class _Layout:
    """The sections of a run, the type of each of their options, and their defaults."""

    sections: dict[str, type[Section]]
    defaults: dict[str, Section]
    options: dict[str, dict[str, Any]]

    @property
    def dotted(self) -> list[str]:
        return [f"{section}.{key}" for section, keys in self.options.items() for key in keys]


def load_config(model: str, files: Sequence[Path] = (), overrides: Sequence[str] = ()) -> RunConfig:
    """Resolve the configuration of one run: flags over files over defaults.

    Args:
        model: a name of `kmidi_mlx.config.RUN_CONFIGS`.
        files: YAML files with the run's sections; a later file wins, option by option. A top-level
            `name`, as saved configurations have it, has to be `model`.
        overrides: texts of the form `section.option=value` (as given to `--set`), the value in
            YAML; a later one wins.

    Raises:
        KmidiError: one sentence with the file and line, or the flag, of the first thing wrong.
    """
    return load_sections(_run_class(model), files, overrides)


def load_sections(
    config_class: type[Config], files: Sequence[Path] = (), overrides: Sequence[str] = ()
) -> Config:
    """Resolve any configuration that is made of sections, as `load_config` does.

    Args:
        config_class: its class; its `name` is what a file of it may be called by.
        files, overrides: as of `load_config`.

    Raises:
        KmidiError: as `load_config`.
    """
    layout = _layout(config_class)
    settings: dict[str, _Setting] = {}
    for path in files:
        settings |= _read_file(path, config_class.name, layout)
    for text in overrides:
        settings |= _read_override(text, layout)
    return _build(config_class, layout, settings)


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the whole configuration as plain data: `name`, then a dict per section.

    Tuples become lists, so that the result survives JSON unchanged.
    """
    plain: dict[str, Any] = {"name": config.name}
    for section in dataclasses.fields(config):
        values = dataclasses.asdict(getattr(config, section.name))
        plain[section.name] = {
            key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
        }
    return plain


def config_from_dict(plain: Mapping[str, Any], where: str) -> RunConfig:
    """Build the run that `config_to_dict` described; options that it lacks get their default.

    Args:
        plain: `name`, then a dict per section.
        where: what to name in an error, such as the file it came from.

    Raises:
        KmidiError: for an unknown name, section or option, or a value that cannot be used.
    """
    try:
        run_class = _run_class(str(plain.get("name")))
    except KmidiError as error:
        raise KmidiError(f"{where}: {error}") from error
    layout = _layout(run_class)
    sections: dict[str, Any] = {}
    for name, values in plain.items():
        if name == "name":
            continue
        if name not in layout.sections or not isinstance(values, dict):
            raise KmidiError(f"{where}: {_unknown_section(name, layout)}")
        for key in values:
            if key not in layout.options[name]:
                raise KmidiError(f"{where}: {_unknown_option(name, key, layout)}")
        typed = {}
        for key, value in values.items():
            wanted = layout.options[name][key]
            if not _fits(value, wanted):
                raise KmidiError(f"{where}: {name}.{key}: expected {_WANTED[wanted]}.")
            typed[key] = tuple(value) if isinstance(value, list) else wanted(value)
        try:
            sections[name] = dataclasses.replace(layout.defaults[name], **typed)
        except ConfigError as error:
            raise KmidiError(f"{where}: {name}.{error.key}: {error.problem}.") from error
    try:
        return run_class(**sections)
    except ConfigError as error:
        raise KmidiError(f"{where}: {error.key}: {error.problem}.") from error


def _fits(value: Any, wanted: Any) -> bool:
    item_type = _item_type(wanted)
    if item_type is not None:
        return isinstance(value, list) and all(type(item) is item_type for item in value)
    # True and False are whole numbers to isinstance; a whole float was written as an int by some
    return type(value) is wanted or (wanted is float and type(value) is int)


def _item_type(wanted: Any) -> Any:
    """The type of a list option's items; None for an option that is no list."""
    return typing.get_args(wanted)[0] if typing.get_origin(wanted) is tuple else None


def save_config(config: RunConfig, path: Path) -> None:
    """Write every option of the run as YAML, each with its documentation, in one atomic step.

    `load_config(config.name, [path])` gives an equal configuration back.

    Args:
        config: the run.
        path: file to make or replace.

    Raises:
        KmidiError: if the file cannot be written.
    """
    lines = [f"name: {config.name}"]
    for section in dataclasses.fields(config):
        lines += ["", f"{section.name}:"]
        options = getattr(config, section.name)
        lines += [
            f"  {item.name}: {_yaml_scalar(getattr(options, item.name))}  # {item.metadata['doc']}"
            for item in dataclasses.fields(options)
        ]
    write_bytes_atomically(path, ("\n".join(lines) + "\n").encode())


def describe_options(config_class: type[Sections], usual: Sections | None = None) -> str:
    """List every option of a configuration: name, default, what it does and what it may be.

    Args:
        config_class: whose options are listed.
        usual: holds the defaults, where they are other than the class's own.
    """
    layout = _layout(config_class)
    width = max(map(len, layout.dotted))
    lines: list[str] = []
    for name, section in layout.defaults.items():
        lines += ["", (section.__doc__ or name).splitlines()[0]]
        for item in dataclasses.fields(section):
            source = section if usual is None else getattr(usual, name)
            default = _yaml_scalar(getattr(source, item.name))
            key = f"{name}.{item.name}".ljust(width)
            lines.append(f"  {key}  {default:<14} {item.metadata['doc']}{_range(item.metadata)}")
    return "\n".join(lines[1:]) + "\n"


def _range(metadata: Mapping[str, Any]) -> str:
    low, high, choices = metadata["low"], metadata["high"], metadata["choices"]
    if choices is not None:
        return f" ({', '.join(choices)})"
    if low is not None and high is not None:
        return f" ({low} to {high})" if low != high else f" (always {low})"
    return f" (at least {low})" if low is not None else ""


def _run_class(model: str) -> type[RunConfig]:
    if model not in RUN_CONFIGS:
        raise KmidiError(f"unknown model {shown(model)}{nearest(model, RUN_CONFIGS, 'valid are')}")
    return RUN_CONFIGS[model]


def _layout(run_class: type[Sections]) -> _Layout:
    hints = typing.get_type_hints(run_class)
    sections = {item.name: hints[item.name] for item in dataclasses.fields(run_class)}
    options = {}
    for name, section in sections.items():
        types = typing.get_type_hints(section)
        options[name] = {item.name: types[item.name] for item in dataclasses.fields(section)}
    run = run_class()
    return _Layout(sections, {name: getattr(run, name) for name in sections}, options)


def _unknown_section(name: str, layout: _Layout) -> str:
    owners = [dotted for dotted in layout.dotted if dotted.endswith(f".{name}")]
    if name in layout.dotted:
        section, _, key = name.partition(".")
        return f"write {key}: below {section}: instead of {name}:."
    if owners:
        return f"{name} is an option of a section; did you mean {' or '.join(owners)}?"
    return f"unknown section {shown(name)}{nearest(name, layout.sections, 'valid are')}"


def _unknown_option(section: str, key: str, layout: _Layout) -> str:
    owners = [dotted for dotted in layout.dotted if dotted.endswith(f".{key}")]
    text = f"unknown option {shown(f'{section}.{key}')}"
    if owners:
        return f"{text}; did you mean {' or '.join(owners)}?"
    return text + nearest(
        f"{section}.{key}", [f"{section}.{name}" for name in layout.options[section]], "valid are"
    )


def _read_file(path: Path, model: str, layout: _Layout) -> dict[str, _Setting]:
    source = Source(str(path))
    root = strict_yaml.compose(strict_yaml.read_text(path), source)
    settings: dict[str, _Setting] = {}
    if root is None or _is_empty(root):
        return settings
    for name, line, node in _pairs(root, source, "sections of options (model:, data:, …)"):
        if name == "name":
            _check_name(node, model, source)
        elif name not in layout.sections:
            raise KmidiError(f"{source.at(line)}: {_unknown_section(name, layout)}")
        elif not _is_empty(node):
            for key, key_line, value in _pairs(node, source, f"options of {name}, key: value"):
                place = source.at(key_line)
                if key not in layout.options[name]:
                    raise KmidiError(f"{place}: {_unknown_option(name, key, layout)}")
                setting = _Setting(_convert(value, name, key, layout, source), place)
                settings[f"{name}.{key}"] = setting
    return settings


def _is_empty(node: yaml.Node) -> bool:
    # `section:` with all its lines commented out; a written null is a mistake
    return isinstance(node, yaml.ScalarNode) and node.tag == strict_yaml.NULL and not node.value


def _pairs(
    node: yaml.Node, source: Source, expected: str
) -> typing.Iterator[tuple[str, int, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        place = source.at(node.start_mark.line)
        raise KmidiError(f"{place}: expected {expected}, found {_found(node)}.")
    lines: dict[str, int] = {}
    for key_node, value in node.value:
        line = key_node.start_mark.line
        if not isinstance(key_node, yaml.ScalarNode):
            raise KmidiError(f"{source.at(line)}: expected a name before the colon.")
        name = key_node.value
        if name == "<<":
            raise KmidiError(f"{source.at(line)}: merge keys are not allowed; write the options.")
        if name in lines:
            raise KmidiError(
                f"{source.at(line)}: {shown(name)} was already given in line {lines[name] + 1}; "
                "keep one of them."
            )
        lines[name] = line
        yield name, line, value


def _check_name(node: yaml.Node, model: str, source: Source) -> None:
    place = source.at(node.start_mark.line)
    if not isinstance(node, yaml.ScalarNode):
        raise KmidiError(f"{place}: name: expected the name of a model, found {_found(node)}.")
    if node.value != model:
        raise KmidiError(
            f"{place}: name: this is a configuration of {shown(node.value) or 'nothing'}, "
            f"but the run is one of {model}; give a file of that model."
        )


def _read_override(text: str, layout: _Layout) -> dict[str, _Setting]:
    source = Source(f"--set {shown(text, 80)}", numbered=False)
    dotted, equals, value_text = text.partition("=")
    section, dot, key = dotted.strip().partition(".")
    if not equals or not dot:
        raise KmidiError(f"{source.name}: expected section.option=value.")
    if section not in layout.sections:
        raise KmidiError(f"{source.name}: {_unknown_section(section, layout)}")
    if key not in layout.options[section]:
        raise KmidiError(f"{source.name}: {_unknown_option(section, key, layout)}")
    if len(value_text) > strict_yaml.MAX_FILE_BYTES:
        raise KmidiError(f"{source.name}: the value is longer than 1 MiB.")
    node = strict_yaml.compose(value_text, source)
    if node is None:
        raise KmidiError(f"{source.name}: {section}.{key} has no value after the equals sign.")
    value = _convert(node, section, key, layout, source)
    return {f"{section}.{key}": _Setting(value, source.name)}


def _convert(node: yaml.Node, section: str, key: str, layout: _Layout, source: Source) -> Any:
    wanted = layout.options[section][key]
    where = f"{source.at(node.start_mark.line)}: {section}.{key}"
    item_type = _item_type(wanted)
    if item_type is None:
        return _scalar(node, wanted, where)
    if not isinstance(node, yaml.SequenceNode):
        raise KmidiError(f"{where}: expected {_WANTED[wanted]}, found {_found(node)}.")
    return tuple(
        _scalar(item, item_type, f"{source.at(item.start_mark.line)}: {section}.{key}[{index}]")
        for index, item in enumerate(node.value)
    )


def _scalar(node: yaml.Node, wanted: type, where: str) -> int | float | bool | str:
    tag = node.tag if isinstance(node, yaml.ScalarNode) else None
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    is_number = tag in (strict_yaml.INT, strict_yaml.FLOAT)
    if is_number and len(text) > _LONGEST_NUMBER:
        raise KmidiError(f"{where}: the number {shown(text, 20)} has too many digits.")
    if wanted is int and tag == strict_yaml.INT:
        if abs(int(text)) > _LARGEST_INT:
            raise KmidiError(f"{where}: {text} is too large for a whole number.")
        return int(text)
    if wanted is float and is_number:
        return float(text)
    if wanted is bool and tag == strict_yaml.BOOL:
        return bool(text.lower() == "true")
    if wanted is str and tag == yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG:
        return _printable(text, where)
    hint = ""
    if wanted is str and tag is not None and text:
        hint = "; put it in quotes"
    elif wanted in (int, float) and re.fullmatch(r"[-+]?[\d._]+\w*", text) and not is_number:
        hint = "; write numbers like 64, 0.5 or 1e-4, without quotes"
    raise KmidiError(f"{where}: expected {_WANTED[wanted]}, found {_found(node)}{hint}.")


def _printable(text: str, where: str) -> str:
    if len(text) > _LONGEST_TEXT:
        raise KmidiError(f"{where}: the text is longer than {_LONGEST_TEXT} characters.")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise KmidiError(f"{where}: the text {shown(text)!r} has a control character in it.")
    return text


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping of keys to values"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if node.tag == strict_yaml.NULL:
        return node.value or "nothing"
    if node.tag == yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG:
        return f'the text "{shown(node.value)}"'
    return shown(node.value)


def _build(run_class: type[Config], layout: _Layout, settings: dict[str, _Setting]) -> Config:
    sections: dict[str, Any] = {}
    for name, default in layout.defaults.items():
        keys = [key for key in layout.options[name] if f"{name}.{key}" in settings]
        given = {key: settings[f"{name}.{key}"].value for key in keys}
        try:
            sections[name] = dataclasses.replace(default, **given)
        except ConfigError as error:
            raise _located(f"{name}.{error.key}", name, error, settings) from error
    try:
        return run_class(**sections)
    except ConfigError as error:
        raise _located(error.key, "", error, settings) from error


def _located(
    dotted: str, section: str, error: ConfigError, settings: dict[str, _Setting]
) -> KmidiError:
    if dotted in settings:
        return KmidiError(f"{settings[dotted].place}: {dotted}: {error.problem}.")
    # the default of `dotted` does not go together with an option that was set: name that one
    for word in re.findall(r"[a-z_][a-z0-9_.]*", error.problem):
        other = word if "." in word else f"{section}.{word}"
        if other in settings:
            place = settings[other].place
            return KmidiError(f"{place}: {other} does not fit {dotted}: {error.problem}.")
    return KmidiError(f"{dotted}: {error.problem}.")


def _yaml_scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml_scalar, value))}]"
    if isinstance(value, float):
        # readers of YAML 1.1 take 1e-05 for text, 1.0e-05 for a number
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    if isinstance(value, int):
        return str(value)
    if re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII) and yaml.safe_load(value) == value:
        return str(value)
    text: str = yaml.dump(value, default_style='"', allow_unicode=True, width=2**31)
    return text.removesuffix("\n")
