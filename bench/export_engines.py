"""The engines that `bench.exports` compares, each as a call on the same inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from numpy.typing import NDArray

from kmidi_mlx.checkpoint_model import Loaded
from kmidi_mlx.config import EmotionRecognizerConfig, MidiGeneratorConfig, SamplingConfig
from kmidi_mlx.generation import generator as mlx_generator
from kmidi_mlx.models import loading as mlx_loading
from kmidi_mlx.models.kv_cache import KVCache as MlxKVCache
from kmidi_mlx.models.midi_transformer import Conditions as MlxConditions
from kmidi_mlx.music import grammar
from kmidi_mlx.music.knobs import pack, unpack
from kmidi_mlx.spectocloud import DEFAULT_POINTS
from kmidi_torch.export.coreai_file import CoreaiRun
from kmidi_torch.export.coreml.functions import PREFILL_EVENTS
from kmidi_torch.export.exportable import cloud_pass, recognizer_pass
from kmidi_torch.export.exported_decoder import ExportedDecoder
from kmidi_torch.export.mil import Program
from kmidi_torch.export.onnx_file import OnnxRun
from kmidi_torch.export.proof import live_inputs
from kmidi_torch.export.samples import EMOTION, piece_ids
from kmidi_torch.generation.decoder import TorchDecoder
from kmidi_torch.generation.generator import EventGenerator
from kmidi_torch.loading import load_generator
from kmidi_torch.models.kv_cache import KVCache, Place
from kmidi_torch.models.midi_transformer import Conditions

Inputs = Mapping[str, NDArray[Any]]
Output = NDArray[np.float32]
Call = Callable[[], Output]

# The likeliest events alone make little music; this keeps it moving and still leaves no chance.
GREEDY = SamplingConfig(
    temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.5, max_rest_seconds=0.5
)
_PROMPT_EVENTS = 24


def fp32_calls(
    loaded: Loaded[Any, Any], checkpoint: Path, paths: Mapping[str, Path], held: ExitStack
) -> dict[str, tuple[Call, float]]:
    """One live call of every engine that can be timed, and how far its output is from PyTorch's.

    Args:
        loaded: the model in PyTorch.
        checkpoint: the same for MLX.
        paths: of the exports in fp32.
        held: keeps runtimes open.
    """
    inputs, _ = live_inputs(loaded)
    output = _main_output(loaded.config)
    onnx = OnnxRun(paths["onnx"])
    coreai = held.enter_context(CoreaiRun(paths["coreai"]))
    calls: dict[str, Call] = {
        "PyTorch": torch_call(loaded, inputs, torch.float32),
        "MLX": mlx_call(loaded.config, checkpoint, inputs, mx.float32),
        "onnx": lambda: np.asarray(onnx(inputs)[output]),
        "coreai": lambda: np.asarray(coreai(inputs)[output]),
    }
    expected = calls["PyTorch"]()
    return {name: (call, apart(expected, call())) for name, call in calls.items()}


def half_differences(loaded: Loaded[Any, Any], checkpoint: Path) -> dict[str, float]:
    """How far one live call in fp16 is from PyTorch's in fp32, over its spread where above 1."""
    inputs, _ = live_inputs(loaded)
    expected = torch_call(loaded, inputs, torch.float32)()
    spread = max(1.0, float(expected.std()))
    half = {
        "PyTorch": torch_call(loaded, inputs, torch.float16),
        "MLX": mlx_call(loaded.config, checkpoint, inputs, mx.float16),
    }
    return {name: apart(expected, call()) / spread for name, call in half.items()}


def apart(expected: Output, found: Output) -> float:
    """Largest difference; infinite where the shapes differ."""
    if expected.shape != found.shape:
        return float("inf")
    return float(np.abs(expected.astype(np.float64) - found).max())


def _main_output(config: object) -> str:
    if isinstance(config, MidiGeneratorConfig):
        return "logits"
    return "numbers" if isinstance(config, EmotionRecognizerConfig) else "cloud"


def torch_call(loaded: Loaded[Any, Any], inputs: Inputs, dtype: torch.dtype) -> Call:
    """One live call as PyTorch makes it itself, with the model's own cache."""
    model = copy.deepcopy(loaded.model).to(dtype).eval()
    if not isinstance(loaded.config, MidiGeneratorConfig):
        same = Loaded(model, loaded.config, loaded.metadata, loaded.path)
        recognizer = isinstance(loaded.config, EmotionRecognizerConfig)
        exportable = recognizer_pass(same) if recognizer else cloud_pass(same, DEFAULT_POINTS)
        given = [torch.from_numpy(inputs[port.name]) for port in exportable.inputs]

        @torch.no_grad()
        def whole() -> Output:
            found = exportable.module(*given)
            first = found[0] if isinstance(found, tuple) else found
            return np.asarray(first.float().numpy())

        return whole
    cache = KVCache(loaded.config.model, dtype=dtype)
    _fill(cache, inputs, lambda array: torch.from_numpy(array).to(dtype))
    cross = model.cross_keys_values(
        Conditions(
            torch.from_numpy(inputs["emotion"]),
            torch.from_numpy(inputs["chord"])[:, None],
            torch.from_numpy(inputs["key"]),
        )
    )
    ids, place = torch.from_numpy(inputs["ids"]), cache.next_place()

    def step() -> Output:
        logits, _, _ = model.step(ids, Place(*place), cache.keys, cache.values, cross)
        return np.asarray(logits[:, None].float().numpy())

    return step


def mlx_call(config: Any, checkpoint: Path, inputs: Inputs, dtype: mx.Dtype) -> Call:
    """One live call as MLX makes it, compiled."""
    given = {name: mx.array(value) for name, value in inputs.items()}
    if not isinstance(config, MidiGeneratorConfig):
        if isinstance(config, EmotionRecognizerConfig):
            recognizer = mlx_loading.load_recognizer(checkpoint, dtype).model
            graph = mx.compile(lambda: recognizer(given["frames"], given["counts"]).numbers)
        else:
            network = mlx_loading.load_spectocloud(checkpoint, dtype).model
            constants = network.constants()
            mx.eval(constants.biases, constants.queries)
            three = (given["windows"], given["features"], given["emotion"])
            graph = mx.compile(lambda: network(*three, constants))
        return lambda: np.array(graph().astype(mx.float32))
    model = mlx_loading.load_generator(checkpoint, dtype).model
    cache = MlxKVCache(config.model, dtype=dtype)
    _fill(cache, inputs, lambda array: mx.array(array).astype(dtype))
    cross = model.cross_keys_values(
        MlxConditions(given["emotion"], given["chord"][:, None], given["key"])
    )
    place = cache.next_place()
    compiled = mx.compile(model.step)
    mx.eval(cross, cache.keys, cache.values)

    def step() -> Output:
        # as a stream does: nothing else may hold the ring while it is rewritten
        keys, values = cache.keys, cache.values
        cache.keys, cache.values = [], []
        logits, cache.keys, cache.values = compiled(given["ids"], place, keys, values, cross)
        del keys, values
        mx.eval(logits, cache.keys, cache.values)
        return np.array(logits[:, None].astype(mx.float32))

    return step


def _fill(cache: Any, inputs: Inputs, array: Callable[[NDArray[Any]], Any]) -> None:
    """Put the inputs' cache into a model's own, event p at place p."""
    heads = cache.keys[0].shape[1]
    count = inputs["past_keys"].shape[2]
    cache.reserve(count + 1)
    for layer in range(len(cache.keys)):
        own = slice(layer * heads, (layer + 1) * heads)
        for held, name in ((cache.keys, "past_keys"), (cache.values, "past_values")):
            held[layer][:, :, :count] = array(np.ascontiguousarray(inputs[name][:, own]))
    cache.offset = count


def greedy_engines(
    checkpoint: Path, paths: Mapping[str, Path], held: ExitStack
) -> dict[str, Callable[[int], tuple[NDArray[np.int64], float | None]]]:
    """For each engine what writes a number of events, and tells the smallest gap it saw."""
    loaded = load_generator(checkpoint)
    config = loaded.config.model
    coreai = held.enter_context(CoreaiRun(paths["coreai"]))
    functions = {
        size: Program.open(paths["coreml"], name)
        for size, name in ((PREFILL_EVENTS, "prefill"), (1, "step"))
    }
    decoders = {
        "PyTorch": TorchDecoder(loaded.model),
        "onnx": ExportedDecoder(OnnxRun(paths["onnx"]), config),
        "coreml": ExportedDecoder(
            lambda given: functions[given["ids"].shape[1]].run(given),
            config,
            chunks=(PREFILL_EVENTS, 1),
            places=config.context_length - 1,
        ),
        "coreai": ExportedDecoder(coreai, config),
    }
    prompt = piece_ids(_PROMPT_EVENTS)[1:]

    def over(decoder: Any) -> Callable[[int], tuple[NDArray[np.int64], float | None]]:
        def write(count: int) -> tuple[NDArray[np.int64], float | None]:
            watched = _Watched(decoder)
            stream = EventGenerator(watched, GREEDY, emotion=EMOTION, prompt=prompt)
            events = np.array([stream.next_event() for _ in range(count)])
            return events, _smallest_gap(watched.logits, prompt, events)

        return write

    def mlx(count: int) -> tuple[NDArray[np.int64], float | None]:
        model = mlx_loading.load_generator(checkpoint, mx.float32).model
        stream = mlx_generator.EventGenerator(model, GREEDY, emotion=EMOTION, prompt=prompt)
        return np.array([stream.next_event() for _ in range(count)]), None

    return {**{name: over(decoder) for name, decoder in decoders.items()}, "MLX": mlx}


class _Watched:
    """A decoder whose logits are kept."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.logits: list[NDArray[np.float32]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def step(self, token: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._decoder.step(token)
        self.logits.append(logits[0].float().numpy().copy())
        return logits


def _smallest_gap(
    logits: list[NDArray[np.float32]], prompt: NDArray[np.int32], events: NDArray[np.int64]
) -> float:
    """How near the likeliest and the second likeliest event that were allowed ever came."""
    table, state = grammar.tables(), grammar.initial_state()
    limits = unpack(pack(GREEDY)).limits
    penalty = np.log(GREEDY.repetition_penalty)
    for event in prompt:
        state = grammar.advance(state, np.array([event]), table, np)
    sounding = (state[grammar.AGE, :128] >= 0).sum()
    state[grammar.SOUNDING] = sounding
    smallest = float("inf")
    for found, event in zip(logits, events, strict=False):
        scores = found - penalty * state[grammar.RECENT]
        allowed = np.sort(scores[grammar.allowed(state, limits, table, np)[0]])
        if len(allowed) > 1:
            smallest = min(smallest, float(allowed[-1] - allowed[-2]))
        state = grammar.advance(state, np.array([event]), table, np)
    return smallest
