"""The engine: one thread that owns all work of MLX, in frames with deadlines.

Every frame the music comes first: what is missing to a beat is written whatever it takes, what is
missing to a bar within its budget. Then a cloud is drawn, then music is written up to the wanted
two bars for as long as a token still fits before the frame's deadline. A frame that comes too late
is left out and counted, never made up for.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from kmidi_mlx.adapter_file import Adapter, notices, open_adapters
from kmidi_mlx.checkpoint import BEST
from kmidi_mlx.config import MidiGeneratorConfig, SpectocloudConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generation.generator import EventGenerator, Step, compiled_step, warm_up
from kmidi_mlx.live.clock import BAR_STEPS, BEAT_STEPS, SongClock
from kmidi_mlx.live.cloud_slot import CloudFrame, CloudSlot
from kmidi_mlx.live.composer import Direction
from kmidi_mlx.live.conductor import Conductor, Hands
from kmidi_mlx.live.feeling import Feeling
from kmidi_mlx.live.pieces import Piece, Pieces
from kmidi_mlx.live.planned import NoteRing
from kmidi_mlx.live.played import PlayedLog
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.quality import Costs, Quality, QualityControl, Wishes
from kmidi_mlx.live.session import Session, Settings
from kmidi_mlx.live.sound import FanReader, SoundFan
from kmidi_mlx.live.stats import Stats
from kmidi_mlx.live.styles import Style, Styles
from kmidi_mlx.live.thread_priority import STEADY, hurry
from kmidi_mlx.live.visualiser import Visualiser
from kmidi_mlx.live_config import LiveConfig
from kmidi_mlx.models.adapters import AdaptedModel, adapt
from kmidi_mlx.models.loading import load_generator, load_spectocloud
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT
from kmidi_mlx.shipped import in_force

__all__ = ["EngineLoop", "Piece"]

# However much music is missing, transport and emotion are looked at this often.
_LONGEST_WRITING = 0.25
_CONTROL_SECONDS = 1.0
# For so long after a change or the start the plan may be short.
_SHORT_GRACE_SECONDS = 3.0
# With very short frames handing over would take all of them; it does not.
_LEAST_LOAD = 0.7
# Dense music has 50 tokens a second, and writing may take two thirds of the time.
_DENSE_TOKEN_SECONDS = 0.66 / 50
# About ten seconds of music.
_LEAST_CONTEXT = 512
# Freed buffers that MLX may keep: what a frame needs, and no more.
_CACHE_BYTES = 128_000_000
# Above this many nats an event on held-out pieces, a generator knows notes but hardly music.
_MUSICAL_NATS = 3.0


class EngineLoop(threading.Thread):
    """Writes music and draws clouds until stopped.

    Args:
        config: what the application starts with.
        session: what is wanted.
        clock, ring, player, played, sound, clouds, stats: of the same performance.
        on_frame: called at the beginning of every frame.
        on_felt: told of the emotion of what is listened to; it must not wait.

    Attributes:
        loaded: set once the weights are there, or could not be had.
        ready: set once everything is compiled and warm.
        error: what ended the thread, if something did.
        draws: `network`, `engine` or `off`.
        has_network: whether there is a network to draw with.
        conductor: the music's side; None until it is warm.
        hands: the keyboard that the conductor is to look at.
        listens: what the cloud hears instead of the music, if anything.
        styles: adapters of the generator; None until it is loaded.
    """

    def __init__(
        self,
        config: LiveConfig,
        session: Session,
        clock: SongClock,
        ring: NoteRing,
        player: Player,
        played: PlayedLog,
        sound: SoundFan,
        clouds: CloudSlot,
        stats: Stats,
        on_frame: Callable[[], None] = lambda: None,
        on_felt: Callable[[Emotion], None] = lambda emotion: None,
    ) -> None:
        super().__init__(name="kmidi engine", daemon=True)
        self.loaded = threading.Event()
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self.draws = "off"
        self.has_network = False
        self.conductor: Conductor | None = None
        self.hands: Hands | None = None
        self.listens: SoundFan | None = None
        self.styles: Styles | None = None
        self._style = Style(0, ())
        self._config = config
        self._session = session
        self._clock = clock
        self._ring = ring
        self._player = player
        self._played = played
        self._sound = sound
        self._clouds = clouds
        self._stats = stats
        self._on_frame = on_frame
        self._on_felt = on_felt
        self._stopping = threading.Event()
        self._ended = False
        self._orders: deque[Callable[[], None]] = deque()
        self._pieces = Pieces(self._piece_stream)
        self._frames = config.loop.frames_per_second
        frame_ms = 1000.0 / self._frames
        self._control = QualityControl(
            self._frames,
            most_load=max(_LEAST_LOAD, 1.0 - config.loop.rendering_ms / frame_ms),
            most_drawing=config.loop.cloud_ms / frame_ms,
        )
        self._costs = Costs()
        self._controlled = 0.0
        self._enough_since = 0.0
        self._feeling: Feeling | None = None
        self._feels: FanReader | None = None
        self._sequence = 0

    def stop(self) -> None:
        """End the thread; returns when it has ended."""
        self._stopping.set()
        if self.is_alive():
            self.join()

    def listen(self, sound: SoundFan | None) -> None:
        """Let the cloud hear something else; None: the music. Any thread may call."""

        def change() -> None:
            self.listens = sound
            self._visualiser.listen(sound)
            self._stop_feeling()

        self._orders.append(change)

    def write(self, piece: Piece) -> None:
        """Write a piece when there is time to; any thread may call."""
        self._pieces.add(piece)
        if self._ended:
            self._pieces.refuse()

    def run(self) -> None:
        """Load, warm up, and work until stopped."""
        hurry(STEADY)  # before MLX starts threads of its own
        try:
            self._load()
            self.loaded.set()
            self._warm()
            self.ready.set()
            self._perform()
        except BaseException as error:
            self.error = error
            if self.loaded.is_set():
                self._session.notice("engine", "error", f"The engine has failed: {error!r}.")
        finally:
            self._clock.pause(time.monotonic())
            self._player.silence()
            self._ended = True
            self._pieces.refuse()
            _end_mlx()
            self.loaded.set()
            self.ready.set()

    def _load(self) -> None:
        config = self._config
        _limit_memory(config.loop.memory_gb)
        loaded = load_generator(Path(config.models.generator))
        self._session.notice("weights", "info", _about(loaded.path, loaded.metadata))
        if loaded.notice:
            self._session.notice("practice", "warning", loaded.notice)
        self._model: EmotionMIDITransformer = loaded.model
        self._adapted = AdaptedModel(self._model)
        styles = Styles(loaded.path.parent, self._check_adapter)
        styles.choose(config.models.adapters)
        self._style = styles.wanted
        self._adapted.use(self._style.adapters)
        for note in notices(self._style.adapters, loaded.path, MidiGeneratorConfig.name):
            self._session.notice("style", "warning", note)
        self.styles = styles
        self._step: Step = compiled_step(self._model)
        network = self._load_network(config.cloud.source)
        self._visualiser = Visualiser(self._sound, self._played, network)
        self.has_network = network is not None

    def _load_network(self, source: str) -> SpectocloudViT | None:
        path = in_force(Path(self._config.models.spectocloud))
        adapters = self._config.models.cloud_adapters
        if source in ("engine", "off") or (source == "auto" and not path.exists()):
            if adapters:
                raise KmidiError(
                    f"models.cloud_adapters: no network of {path} draws, so nothing can be adapted."
                )
            return None
        loaded = load_spectocloud(path)
        adapt(loaded.model, open_adapters(adapters, loaded.path.parent, SpectocloudConfig.name))
        return loaded.model

    def _warm(self) -> None:
        """Compile every shape before the first note, and learn what everything costs."""
        plain = warm_up(self._model, self._step)
        guided = warm_up(self._model, self._step, guidance=True)
        self._context = self._affordable(plain.write)
        self._costs.plain_seconds = plain.write[self._context]
        self._costs.guided_seconds = guided.write[self._context]
        self._costs.cloud_seconds = {
            network: self._visualiser.warm(network)
            for network in (False, True)[: 1 + self.has_network]
        }
        self.conductor = Conductor(
            self._stream,
            self._clock,
            self._ring,
            self._player,
            self._played,
            on_underrun=self._stats.underrun,
            on_token=self._count_token,
            on_style=self._wear_style,
            style=self._style.version,
        )
        self.conductor.hands = self.hands
        self.conductor.reading_seconds = {False: plain.read, True: guided.read}
        # what lives now lives on: the collector need not look at it in the middle of a frame
        gc.collect()
        gc.freeze()

    def _stream(self, direction: Direction) -> EventGenerator:
        first = direction.steering_at(0)
        return EventGenerator(
            self._model,
            direction.sampling,
            direction.seed,
            first.emotion,
            first.chord,
            first.key,
            step=self._step,
            context=self._context,
        )

    def _check_adapter(self, adapter: Adapter) -> None:
        """Have the engine's thread see whether an adapter fits; any other thread may call."""
        checked: Future[None] = Future()

        def check() -> None:
            try:
                self._adapted.check(adapter)
                checked.set_result(None)
            except KmidiError as error:
                checked.set_exception(error)

        self._orders.append(check)
        while True:
            try:
                return checked.result(_CONTROL_SECONDS)
            except TimeoutError:
                if self._ended:
                    raise KmidiError("kmidi is ending.") from None

    def _wear_style(self) -> None:
        """Let the model play in the style that is wanted."""
        try:
            self._adapted.use(self._style.adapters)
        except KmidiError as error:
            # each fits; should they not do so together, the music goes on as it was
            self._session.notice("style", "error", str(error))

    def _piece_stream(self, piece: Piece) -> EventGenerator:
        sampling = self._session.settings.sampling
        return self._stream(Direction(piece.emotion, sampling=sampling, seed=piece.seed))

    def _affordable(self, seconds: dict[int, float]) -> int:
        """How many events the model may look back on, if dense music is to be written in time."""
        most = max(seconds)
        wanted = self._config.loop.context
        if wanted:
            return min((size for size in seconds if size >= wanted), default=most)
        context = most
        while context > _LEAST_CONTEXT and seconds[context] > _DENSE_TOKEN_SECONDS:
            context = max(size for size in seconds if size < context)
        if context < most:
            self._session.notice(
                "context",
                "info",
                f"This machine is slow for the model, which therefore looks back on {context} "
                f"events instead of {most}.",
            )
        return context

    def _count_token(self, seconds: float) -> None:
        self._stats.token(seconds)
        self._costs.wrote(self._guided, seconds)

    def _perform(self) -> None:
        """Go from frame to frame; only those that the quality allows have a cloud."""
        drawn_at = time.monotonic()
        self._enough_since = drawn_at
        self._stats.quality(0, self._control.quality.text)
        while not self._stopping.is_set():
            begun = time.monotonic()
            length = self._control.quality.every / self._frames
            late = begun - drawn_at
            if late > length:
                self._stats.dropped(int(late / length))
                drawn_at = begun
            drawing = begun >= drawn_at
            if drawing:
                drawn_at += length
            ending = min(begun + 1.0 / self._frames, drawn_at)
            self._frame(begun, drawing, ending, drawn_at)
            self._stopping.wait(max(0.0, ending - time.monotonic()))

    def _frame(self, begun: float, drawing: bool, ending: float, next_cloud: float) -> None:
        """Do what is due.

        Args:
            begun: moment at which the frame begins.
            drawing: whether it has a cloud.
            ending: moment at which it ends.
            next_cloud: moment of the next cloud, which a token must not hold up.
        """
        conductor = self.conductor
        assert conductor is not None
        self._on_frame()
        while self._orders:
            self._orders.popleft()()
        settings = self._session.settings
        quality = self._control.quality
        self._guided = quality.guidance and settings.sampling.guidance_scale != 1.0
        assert self.styles is not None
        self._style = self.styles.wanted
        conductor.obey(
            settings, self._session.transport, quality.guidance, quality.pace, self._style.version
        )
        token = self._costs.guided_seconds if self._guided else self._costs.plain_seconds
        conductor.write(BEAT_STEPS, begun + _LONGEST_WRITING)
        budget = max(self._config.loop.generator_ms / 1e3, 4 * token)
        conductor.write(BAR_STEPS, begun + budget)
        if drawing and settings.cloud.source != "off":
            self._draw(settings, quality)
            handed_over = time.monotonic()
            self._stats.frame(handed_over, handed_over - begun)
        if settings.cloud.source == "off":
            self.draws = "off"
        self._feel(settings)
        deadline = min(ending, next_cloud - token)
        wanted = self._wanted_steps(settings) * quality.lookahead
        conductor.write(max(wanted, conductor.needed_steps), deadline)
        self._pieces.write(deadline)
        self._watch(settings, time.monotonic())

    def _wanted_steps(self, settings: Settings) -> float:
        seconds = self._config.loop.lookahead_seconds
        if not seconds:
            return 2 * BAR_STEPS
        return seconds / self._clock.seconds_of(1.0)

    def _wishes(self, settings: Settings) -> Wishes:
        source = settings.cloud.source
        return Wishes(
            points=settings.cloud.points,
            network=self.has_network and source != "engine",
            replaceable=source == "auto",
            drawn=source != "off",
            guided=settings.sampling.guidance_scale != 1.0,
        )

    def _draw(self, settings: Settings, quality: Quality) -> None:
        wishes = self._wishes(settings)
        network = wishes.network and (quality.network or not wishes.replaceable)
        self.draws = "network" if network else "engine"
        points = min(settings.cloud.points, quality.points)
        begun = time.monotonic()
        cloud = self._visualiser.draw(begun, settings.emotion, points, network)
        valence, arousal, _ = self._visualiser.felt
        frame = CloudFrame(self._sequence, begun, cloud.astype(np.float16), valence, arousal)
        self._clouds.put(frame)
        self._sequence += 1
        self._costs.drew(network, points, time.monotonic() - begun)

    def _feel(self, settings: Settings) -> None:
        """Let what the cloud listens to set the emotion, if that is wanted."""
        if not settings.cloud.feel or self.listens is None:
            self._stop_feeling()
            return
        if self._feeling is None or self._feels is None:
            self._feeling = Feeling(Path(self._config.models.recognizer))
            self._feels = self.listens.reader(64)
        while (block := self._feels.read(0.0)) is not None:
            emotion = self._feeling.push(block.samples)
            if emotion is not None:
                self._on_felt(emotion)

    def _stop_feeling(self) -> None:
        if self._feels is not None:
            self._feels.close()
        self._feels = self._feeling = None

    def _watch(self, settings: Settings, now: float) -> None:
        """Once a second: is the music safe, and which quality can be afforded?"""
        conductor = self.conductor
        assert conductor is not None
        ahead = conductor.lookahead_steps(now)
        # a plan without room is no shortage, however dense its music
        enough = ahead >= BAR_STEPS / 2 or conductor.full
        if enough or conductor.playing != "playing" or not conductor.composing:
            self._enough_since = now
        if self._clock.running and conductor.composing:
            self._stats.lookahead(self._clock.seconds_of(ahead), ahead / BAR_STEPS)
        if now - self._controlled < _CONTROL_SECONDS:
            return
        self._controlled = now
        self._costs.tokens_per_second = conductor.tokens_per_second / self._control.quality.pace
        short = now - self._enough_since > _SHORT_GRACE_SECONDS
        if self._control.update(now, self._costs, self._wishes(settings), short):
            self._stats.quality(self._control.level, self._control.quality.text)


def _limit_memory(gigabytes: float) -> None:
    """Let MLX wait for memory rather than take more than it is allowed, and hoard little."""
    import mlx.core as mx

    allowed = int(gigabytes * 1e9)
    mx.set_memory_limit(allowed)
    mx.set_cache_limit(min(_CACHE_BYTES, allowed // 4))


def _end_mlx() -> None:
    """End MLX's own threads of this thread; left to the end of the process they may abort it."""
    import mlx.core as mx

    mx.synchronize()
    mx.clear_streams()


def _about(path: Path, metadata: dict[str, object]) -> str:
    nats, steps = metadata.get("metric"), metadata.get("step")
    # people of other machines see it too: the name, not where it lies on the disk
    whole = path.resolve()
    name = whole.parent.name if whole.name == BEST else whole.stem
    model = f"The music is written by the model “{name}”"
    if not isinstance(nats, float):
        return f"{model}."
    brief = "; it has trained briefly, so expect little" if nats > _MUSICAL_NATS else ""
    return f"{model}: {steps} steps, {nats:.2f} nats an event{brief}."
