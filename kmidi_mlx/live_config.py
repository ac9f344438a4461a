"""Every option of the live application, once: name, unit, range, default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.config_section import ConfigError, Section, option

__all__ = [
    "LiveAlertsConfig", "LiveCloudConfig", "LiveConfig", "LiveLoopConfig", "LiveModelsConfig",
    "LiveMusicConfig", "LivePortsConfig", "LiveServerConfig", "LiveSoundConfig",
]  # fmt: skip

MODES = ("compose", "duet", "accompany", "continue")
CLOUD_SOURCES = ("auto", "network", "engine", "off")


@dataclass(frozen=True)
class LiveModelsConfig(Section):
    """Which weights play and draw (section `models`)."""

    generator: str = option(
        "checkpoints/midi_generator", "checkpoint that writes the music, or else that of kmidi"
    )
    spectocloud: str = option(
        "checkpoints/spectocloud", "checkpoint that draws the cloud, or else that of kmidi"
    )
    recognizer: str = option(
        "checkpoints/emotion_recognizer", "checkpoint that hears emotion, or else that of kmidi"
    )
    adapters: tuple[str, ...] = option(
        (), "adapters of the generator to begin with, NAME or NAME:SCALE; they add up"
    )
    cloud_adapters: tuple[str, ...] = option(
        (), "adapters of the checkpoint that draws, NAME or NAME:SCALE"
    )


@dataclass(frozen=True)
class LiveMusicConfig(Section):
    """What is played; all of it can be changed while it plays (section `music`)."""

    valence: float = option(0.6, "unpleasant to pleasant", low=-1.0, high=1.0)
    arousal: float = option(0.2, "sleepy to excited", low=-1.0, high=1.0)
    tempo: float = option(120.0, "beats a minute; 120 plays as written", low=40.0, high=300.0)
    chords: str = option("", "a chord a bar, over and over, such as C Am F G; empty: free")
    key: str = option("", "such as C:maj or A:min; empty: free")
    mode: str = option("compose", "what a keyboard is for", choices=MODES)
    seed: int = option(0, "of what is drawn", low=0, high=2**31 - 1)


@dataclass(frozen=True)
class LiveCloudConfig(Section):
    """What is seen (section `cloud`)."""

    source: str = option(
        "auto", "who draws: the network where there is one, or the engine", choices=CLOUD_SOURCES
    )
    points: int = option(1200, "points of a cloud", low=200, high=3000)
    listen: str = option("", "sound file, or `input` for a microphone; empty: the music itself")
    feel: bool = option(False, "let what is listened to set the emotion, by the recogniser")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points not in (200, 600, 1200, 2000, 3000):
            raise ConfigError("points", f"{self.points} is not one of 200, 600, 1200, 2000, 3000")


@dataclass(frozen=True)
class LiveSoundConfig(Section):
    """What is heard (section `sound`)."""

    browser: bool = option(True, "play in the page")
    device: str = option("", "sound card to play on, `default` for the usual one; empty: none")
    volume: float = option(0.8, "share of full loudness", low=0.0, high=1.0)
    polyphony: int = option(64, "voices at once", low=1, high=256)
    block_ms: float = option(20.0, "milliseconds that are computed at once", low=5.0, high=100.0)


@dataclass(frozen=True)
class LivePortsConfig(Section):
    """MIDI in and out (section `ports`)."""

    output: str = option(
        "", "port to play on; `virtual` makes one named KmiDi; socket:HOST:PORT; empty: none"
    )
    input: str = option("", "port to listen to; `virtual`, socket:HOST:PORT; empty: none")
    channel: int = option(1, "MIDI channel of the output", low=1, high=16)


@dataclass(frozen=True)
class LiveLoopConfig(Section):
    """Budgets and queues of the loop (section `loop`)."""

    frames_per_second: int = option(60, "clouds a second to aim at", low=1, high=240)
    generator_ms: float = option(5.0, "of a frame, for writing music", low=0.1, high=1000.0)
    cloud_ms: float = option(8.0, "of a frame, for drawing", low=0.1, high=1000.0)
    rendering_ms: float = option(3.0, "of a frame, for handing over", low=0.0, high=1000.0)
    lookahead_seconds: float = option(0.0, "music written ahead; 0: two bars", low=0.0, high=60.0)
    context: int = option(
        0,
        "events that the model looks back on; 0: as many as the machine can afford",
        low=0,
        high=65536,
    )
    note_ring: int = option(128, "events planned at the most", low=16, high=4096)
    memory_gb: float = option(16.0, "memory the process may take", low=0.5, high=1024.0)


@dataclass(frozen=True)
class LiveServerConfig(Section):
    """The page and the interface for other programs (section `server`)."""

    port: int = option(8765, "TCP port; 0: any that is free", low=0, high=65535)
    lan: bool = option(False, "let other machines of the network in, with the token")
    open_browser: bool = option(True, "open the page when it is ready")
    clients: int = option(32, "connections at the most", low=1, high=1024)


@dataclass(frozen=True)
class LiveAlertsConfig(Section):
    """When to say that something is wrong, and the log (section `alerts`)."""

    frames_per_second: float = option(55.0, "alert below this", low=0.0, high=240.0)
    memory_share: float = option(0.9, "alert above this share of memory_gb", low=0.1, high=1.0)
    log: str = option("", "CSV file with a line a second; empty: none")


@dataclass(frozen=True)
class LiveConfig(Section):
    """The live application: everything that `python -m kmidi_mlx.live` can be told."""

    name: ClassVar[str] = "live"

    models: LiveModelsConfig = field(default_factory=LiveModelsConfig)
    music: LiveMusicConfig = field(default_factory=LiveMusicConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    cloud: LiveCloudConfig = field(default_factory=LiveCloudConfig)
    sound: LiveSoundConfig = field(default_factory=LiveSoundConfig)
    ports: LivePortsConfig = field(default_factory=LivePortsConfig)
    loop: LiveLoopConfig = field(default_factory=LiveLoopConfig)
    server: LiveServerConfig = field(default_factory=LiveServerConfig)
    alerts: LiveAlertsConfig = field(default_factory=LiveAlertsConfig)

    def __post_init__(self) -> None:
        """Check what one section cannot check alone; sections have checked themselves."""
