"""The table of prices: what a GPU costs where, since when, and who says so."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from kmidi_mlx import strict_yaml
from kmidi_mlx.errors import KmidiError, nearest
from kmidi_mlx.strict_yaml import Source, shown
from kmidi_torch.planning.gpus import PEAKS, gpu_named

__all__ = ["Billing", "Offer", "Price", "read_prices"]

_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?")


@dataclass(frozen=True)
class Billing:
    """How a provider counts time: whole multiples of `seconds`, and `least` seconds at least."""

    seconds: float
    least: float

    def billed(self, seconds: float) -> float:
        """Seconds that are paid for so many seconds of use."""
        # a multiple that is off by a rounding error is that multiple
        units = math.ceil(round(seconds / self.seconds, 9))
        return max(self.least, units * self.seconds)


@dataclass(frozen=True)
class Price:
    """Dollars for one GPU for one hour, when that was so, and where it was read."""

    usd: float
    date: str
    source: str


@dataclass(frozen=True)
class Offer:
    """A GPU at a provider.

    Attributes:
        provider, gpu: as SkyPilot calls them.
        machine: GPUs of the smallest machine that has them.
        billing: of the provider.
        on_demand, spot: prices; None: not offered, or not known.
    """

    provider: str
    gpu: str
    machine: int
    billing: Billing
    on_demand: Price | None
    spot: Price | None


def read_prices(path: Path) -> list[Offer]:
    """Read a table of prices.

    Args:
        path: YAML as in `configs/cloud/prices.yaml`.

    Raises:
        KmidiError: one sentence with the line of the first thing wrong.
    """
    reader = _Reader(Source(str(path)))
    root = strict_yaml.compose(strict_yaml.read_text(path), reader.source)
    if root is None:
        raise KmidiError(f"{path} holds no prices; begin with the name of a provider.")
    offers = []
    for provider, node in reader.mapping(root, "providers").items():
        fields = reader.mapping(node, provider, ("billed", "source", "gpus"))
        billed = reader.mapping(fields["billed"], "billed", ("seconds", "least"))
        billing = Billing(*(reader.positive(billed[name], name) for name in ("seconds", "least")))
        source = reader.text(fields["source"], "source")
        for gpu, entry in reader.mapping(fields["gpus"], "gpus").items():
            offers.append(reader.offer(provider, gpu, entry, billing, source))
    return offers


class _Reader:
    """Takes nodes of a file apart and tells the line of what is wrong."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def mapping(
        self,
        node: yaml.Node,
        what: str,
        names: tuple[str, ...] = (),
        optional: tuple[str, ...] = (),
    ) -> Mapping[str, yaml.Node]:
        """Values by name; all of `names` have to be there, none but them and `optional` may be."""
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise self._wrong(node, f"{what}: expected names with values below")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self.text(key, "a name")
            if name in found:
                raise self._wrong(key, f"{shown(name)} is given twice")
            if names and name not in (*names, *optional):
                hint = nearest(name, (*names, *optional), "there are").rstrip(".")
                raise self._wrong(key, f"unknown {shown(name)}{hint}")
            found[name] = value
        missing = [name for name in names if name not in found]
        if missing:
            raise self._wrong(node, f"{what} lacks {', '.join(missing)}")
        return found

    def text(self, node: yaml.Node, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
            raise self._wrong(node, f"{what}: expected text")
        return str(node.value)

    def positive(self, node: yaml.Node, what: str) -> float:
        number = node.tag in (strict_yaml.INT, strict_yaml.FLOAT)
        if not isinstance(node, yaml.ScalarNode) or not number or not 0 < float(node.value) < 1e6:
            raise self._wrong(node, f"{what}: expected a number above 0")
        return float(node.value)

    def offer(
        self, provider: str, gpu: str, node: yaml.Node, billing: Billing, source: str
    ) -> Offer:
        if gpu_named(gpu) is None:
            raise self._wrong(node, f"unknown GPU {shown(gpu)}{nearest(gpu, PEAKS, 'there are')}")
        fields = self.mapping(node, gpu)
        unknown = [name for name in fields if name not in ("machine", "on_demand", "spot")]
        if unknown:
            raise self._wrong(node, f"unknown {unknown[0]}; give machine, on_demand, spot")
        machine = self.positive(fields["machine"], "machine") if "machine" in fields else 1
        if machine != int(machine):
            raise self._wrong(fields["machine"], "machine: expected a whole number of GPUs")
        on_demand, spot = (
            self.price(fields[kind], kind, source) if kind in fields else None
            for kind in ("on_demand", "spot")
        )
        if on_demand is None and spot is None:
            raise self._wrong(node, f"{gpu} has no price; give on_demand or spot")
        return Offer(provider, gpu, int(machine), billing, on_demand, spot)

    def price(self, node: yaml.Node, kind: str, source: str) -> Price:
        fields = self.mapping(node, kind, ("usd", "date"), ("source",))
        date = self.text(fields["date"], "date")
        if not _DATE.fullmatch(date):
            raise self._wrong(fields["date"], f"date {shown(date)}: expected 2026-11-23 or 2026-11")
        said = self.text(fields["source"], "source") if "source" in fields else source
        return Price(self.positive(fields["usd"], "usd"), date, said)

    def _wrong(self, node: yaml.Node, what: str) -> KmidiError:
        return KmidiError(f"{self.source.at(node.start_mark.line)}: {what}.")
