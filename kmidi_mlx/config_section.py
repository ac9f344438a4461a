"""What every section of a configuration is made of: options that know their range."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from kmidi_mlx.errors import KmidiError


class ConfigError(KmidiError):
    """A value that cannot be used; `key` names the option inside its section."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """Declare an option: its default, one line of documentation, its inclusive range or choices."""
    metadata = {"doc": doc, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Section:
    """Base of all sections: checks every option against its declared range or choices."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            choices = item.metadata.get("choices")
            if choices is not None and value not in choices:
                shown = repr(str(value)[:40])
                raise ConfigError(item.name, f"{shown} is not one of {', '.join(choices)}")
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not isinstance(number, bool):
                    _check_range(item.name, number, item.metadata)


def _check_range(key: str, number: float, metadata: Any) -> None:
    low, high = metadata.get("low"), metadata.get("high")
    if not math.isfinite(number):
        raise ConfigError(key, f"{number} is not a finite number")
    if low is not None and number < low:
        raise ConfigError(key, f"{number} is below the smallest allowed value {low}")
    if high is not None and number > high:
        raise ConfigError(key, f"{number} is above the largest allowed value {high}")
