"""What is learnt in fine-tuning: the section `adapter` of a run."""

from __future__ import annotations

from dataclasses import dataclass

from kmidi_mlx.config_section import ConfigError, Section, option

_BITS = (0, 4, 6, 8)


@dataclass(frozen=True)
class AdapterConfig(Section):
    """Adapters that are trained while all else stays as it is (section `adapter`)."""

    method: str = option(
        "none",
        "lora, dora (adapters), full (every weight of the base), or none: a model of its own",
        choices=("none", "lora", "dora", "full"),
    )
    base: str = option("", "checkpoint that fine-tuning begins with")
    rank: int = option(16, "inner width of an adapter", low=1, high=1024)
    alpha: float = option(32.0, "adapters count alpha / rank times", low=1e-6, high=1e6)
    dropout: float = option(0.1, "share of an adapter's inputs dropped", low=0.0, high=0.9)
    targets: tuple[str, ...] = option(
        ("qkv:qv", "query", "kv:v", "out"),
        "ends of the names of the layers that are adapted; qkv:qv are two parts of a fused one",
    )
    base_bits: int = option(0, "4, 6 or 8: keep the base quantised (QLoRA); 0: as it is", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_bits not in _BITS:
            raise ConfigError("base_bits", f"{self.base_bits} is none of 0, 4, 6, 8")
        if self.method != "none" and not self.base:
            raise ConfigError("base", "fine-tuning needs a checkpoint to begin with")
        if self.adapts and not self.targets:
            raise ConfigError("targets", "names no layer to adapt")
        if self.base_bits and not self.adapts:
            raise ConfigError("base_bits", "only adapters can learn over a quantised base")

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained, as opposed to every weight."""
        return self.method in ("lora", "dora")
