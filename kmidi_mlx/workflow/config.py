"""What the workflow is asked for: every option once, as in `kmidi_mlx.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from kmidi_mlx.config_section import ConfigError, Section, option

EXPORTS = ("onnx", "coreml")


@dataclass(frozen=True)
class PlaceConfig(Section):
    """Where everything goes, and what it may take (section `workflow`)."""

    out: str = option("out/workflow", "folder of all results")
    memory_gb: float = option(16.0, "memory that no step may exceed", low=1.0)


@dataclass(frozen=True)
class SourcesConfig(Section):
    """The music (section `prepare`)."""

    midi: tuple[str, ...] = option((), "folders, MIDI files, manifests for the generator")
    spectocloud: tuple[str, ...] = option((), "MIDI or sound for the cloud; []: those of midi")
    samples: int = option(48, "clouds of a song", low=2, high=100_000)
    licence: str = option("", "licence of the music, where no manifest says it")


@dataclass(frozen=True)
class TrainStepConfig(Section):
    """How a model is trained (sections `midi_generator` and `spectocloud`)."""

    config: tuple[str, ...] = option((), "YAML files for `kmidi train --config`")
    set: tuple[str, ...] = option((), "options for `kmidi train --set`")


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """What is measured (section `evaluate`)."""

    limit: int = option(20_000, "events of held-out music; 0: all", low=0)
    generate: int = option(4, "pieces to write and measure; 0: none", low=0, high=10_000)
    seconds: float = option(20.0, "length of each", low=1.0, high=3600.0)


@dataclass(frozen=True)
class TuneConfig(Section):
    """A person's own music (section `finetune`)."""

    midi: str = option("", "folder for the generator; empty: no fine-tuning")
    spectocloud: str = option("", "folder for the cloud; empty: no fine-tuning")
    practice: int = option(0, "practice pieces to tune the generator on instead", low=0, high=1000)
    set: tuple[str, ...] = option((), "options for `kmidi finetune --set`")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.midi and self.practice:
            raise ConfigError("practice", "give a folder in midi, or practice pieces, not both")


@dataclass(frozen=True)
class QuantizeConfig(Section):
    """Smaller weights (section `quantize`)."""

    bits: int = option(8, "8, 6 or 4; 0: none", low=0, high=8)
    max_loss: float = option(0.0, "refuse what loses more; 0: only report it", low=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (0, 4, 6, 8):
            raise ConfigError("bits", f"{self.bits} is none of 0, 4, 6, 8")


@dataclass(frozen=True)
class ExportConfig(Section):
    """Files for other runtimes (section `export`)."""

    targets: tuple[str, ...] = option(EXPORTS, "onnx, coreml; left out without their packages")

    def __post_init__(self) -> None:
        super().__post_init__()
        strangers = [name for name in self.targets if name not in EXPORTS]
        if strangers:
            raise ConfigError(
                "targets", f"{strangers[0][:40]!r} is not one of {', '.join(EXPORTS)}"
            )


@dataclass(frozen=True)
class BenchConfig(Section):
    """Speed of the live application with these models (section `bench`)."""

    seconds: int = option(20, "how long it plays; 0: no bench", low=0, high=3600)


@dataclass(frozen=True)
class WorkflowConfig(Section):
    """Everything that `kmidi workflow` can be told."""

    name: ClassVar[str] = "mlx_workflow"

    workflow: PlaceConfig = field(default_factory=PlaceConfig)
    prepare: SourcesConfig = field(default_factory=SourcesConfig)
    midi_generator: TrainStepConfig = field(default_factory=TrainStepConfig)
    spectocloud: TrainStepConfig = field(default_factory=TrainStepConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    finetune: TuneConfig = field(default_factory=TuneConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
