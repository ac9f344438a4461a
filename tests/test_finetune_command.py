"""Fine-tuning as people start it: a few files, killed and resumed, fused, heard; what is wrong."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kmidi_mlx import checkpoint, finetune, generate, shipped
from kmidi_mlx.command import run
from kmidi_mlx.config import TrainingConfig
from kmidi_mlx.config_file import load_config
from kmidi_mlx.models.loading import load_generator
from kmidi_mlx.models.midi_transformer import Conditions
from kmidi_mlx.runs.finetuning import plan_finetuning, usual_config

Captured = pytest.CaptureFixture[str]

QUICK = [
    "training.epochs=6",
    "training.min_epochs=0",
    "training.save_epochs=1",
    "training.grad_accum_steps=2",
    "optimizer.learning_rate=5e-3",
    "optimizer.warmup_epochs=1",
    "training.sample_seconds=0",
    "adapter.rank=4",
]


def test_the_file_beside_the_configurations_is_the_one_that_is_used() -> None:
    root = Path(__file__).parents[1]
    used = root / "kmidi_mlx" / "assets" / "lora.yaml"
    assert (root / "configs" / "lora.yaml").read_bytes() == used.read_bytes()


def words(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def test_what_is_shown_can_be_pasted(base: Path, tunes: Path, capsys: Captured) -> None:
    name = "My Músic folder"
    tuned(base, tunes, "--name", name)
    line = next(line for line in capsys.readouterr().out.splitlines() if "hear it: " in line)
    parsed = shlex.split(line.partition("hear it: ")[2])
    assert parsed[parsed.index("--adapter") + 1] == f"{name}:1.0"


def tuned(base: Path, tunes: Path, *more: str) -> Path:
    """Fine-tune in this process and return the run's folder."""
    arguments = ["--base", str(base), "--data", str(tunes), *more, *words(QUICK)]
    assert run(finetune.main, arguments) == 0
    return base / "adapters" / "tunes"


def test_the_weights_of_the_package_are_taken_along(
    base: Path, tunes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Adapters need a base that stays what it is, so it is copied into the folder of one's own."""
    monkeypatch.setattr(shipped, "_SHIPPED", base.parent)
    ours = base.parent / "midi_generator"
    shutil.copytree(base, ours)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    flags = ["--data", str(tunes), *words([*QUICK, "training.epochs=1"])]
    assert run(finetune.main, [*flags, "--resume"]) == 2
    assert list(Path.cwd().iterdir()) == []
    assert run(finetune.main, flags) == 0
    assert "the weights that come with kmidi" in capsys.readouterr().err
    own = Path("checkpoints/midi_generator")
    assert (own / checkpoint.BEST).read_bytes() == (ours / checkpoint.BEST).read_bytes()
    assert (own / "adapters" / "tunes" / checkpoint.ADAPTER).exists()
    generated = ["--adapter", "tunes", "--seconds", "1", "--out", "a.mid"]
    assert run(generate.main, generated) == 0
    assert "trained over other weights" not in capsys.readouterr().err


def logits(path: Path, adapters: list[str]) -> mx.array:
    from kmidi_mlx.adapter_file import open_adapters
    from kmidi_mlx.models.adapters import adapt

    loaded = load_generator(path, mx.float32)
    adapt(loaded.model, open_adapters(adapters, path, "midi_generator"))
    tokens = mx.array(np.random.default_rng(1).integers(0, 388, (1, 12)))
    conditions = Conditions(mx.zeros((1, 64)), mx.zeros((1, 1), mx.int32), mx.zeros((1,), mx.int32))
    return loaded.model(tokens, conditions, mx.zeros((1, 12), mx.int32))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_three_files_and_more_become_an_adapter(
    method: str, base: Path, tunes: Path, capsys: Captured, tmp_path: Path
) -> None:
    tracked = ["--tracker", "tensorboard"] if method == "dora" else []
    out = tuned(base, tunes, "--fuse", *tracked, "--set", f"adapter.method={method}")
    said = capsys.readouterr()
    assert len(list((out / "tensorboard").glob("events.*"))) == (method == "dora")
    assert "4 pieces, 52 seconds, 264 notes" in said.err
    assert "3 to learn from, 1 held out" in said.err
    assert " of them are trained (" in said.err
    assert "kmidi generate --checkpoint" in said.out
    memory = json.loads((out / "finetune.json").read_text())
    assert memory["after"]["own"] < memory["before"]["own"] - 0.05
    assert memory["after"]["original"] is not None
    assert f"own music {memory['before']['own']:.3f} -> " in said.out

    arrays, metadata = checkpoint.load_arrays(out / "adapter.safetensors")
    config = load_config("midi_generator", [out / "adapter_config.yaml"])
    assert config.adapter.method == metadata["config"]["adapter"]["method"] == method
    learnt = {"lora_a", "lora_b"} | ({"magnitude"} if method == "dora" else set())
    assert {name.rpartition(".")[2] for name in arrays} == learnt
    # query and value of 2 blocks, output of 2, and of one cross-attention query, value, output
    assert len(arrays) == len(learnt) * 7
    state, _ = checkpoint.load_arrays(out / checkpoint.LAST)
    assert {name.removeprefix("weights.") for name in state if name.startswith("weights.")} == {
        *arrays
    }

    fused, unfused = logits(out / "fused", []), logits(base, ["tunes"])
    assert float(mx.abs(fused - unfused).max()) < 1e-5
    assert float(mx.abs(unfused - logits(base, [])).max()) > 0.01
    half = logits(base, ["tunes:0.5"])
    assert float(mx.abs(half - unfused).max()) > 0
    piece = ["--checkpoint", str(base), "--seconds", "3", "--seed", "2", "--temperature", "0"]
    for name, adapters in (("plain", []), ("mine", ["--adapter", "tunes"])):
        assert run(generate.main, [*piece, *adapters, "--out", str(tmp_path / f"{name}.mid")]) == 0
    own, fused_piece = tmp_path / "mine.mid", tmp_path / "fused.mid"
    piece[1] = str(out / "fused")
    assert run(generate.main, [*piece, "--out", str(fused_piece)]) == 0
    assert own.read_bytes() == fused_piece.read_bytes()


def test_over_a_quantised_base_and_every_weight(base: Path, tunes: Path, capsys: Captured) -> None:
    tuned(base, tunes, "--set", "adapter.base_bits=8")
    result_of_all = ["--base", str(base), "--data", str(tunes), "--json", *words(QUICK)]
    capsys.readouterr()
    assert run(finetune.main, [*result_of_all, "--set", "adapter.method=full"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["memory"]["after"]["own"] < result["memory"]["before"]["own"]
    whole = load_generator(base.parent / "base-tunes")
    assert whole.metadata["base"]["name"] == "base"
    count = sum(value.size for _, value in tree_flatten(whole.model.parameters()))
    assert count == sum(
        value.size for _, value in tree_flatten(load_generator(base).model.parameters())
    )


class Tuning:
    """A run in a process of its own, started as often as it takes."""

    def __init__(self, base: Path, tunes: Path, name: str) -> None:
        self.out = base / "adapters" / name
        self._flags = ["--base", str(base), "--data", str(tunes), "--name", name, *words(QUICK)]

    def start(self) -> subprocess.Popen[str]:
        flags = self._flags
        if (self.out / checkpoint.LAST).exists():
            flags = ["--out", str(self.out), "--resume"]
        return subprocess.Popen(
            [sys.executable, "-m", "kmidi_mlx.finetune", "--json", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def finish(self) -> dict[str, Any]:
        process = self.start()
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        result: dict[str, Any] = json.loads(out)
        return result


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_cut_off_ends_as_one_that_is_not(
    base: Path, tunes: Path, number: signal.Signals
) -> None:
    whole = Tuning(base, tunes, "whole")
    result = whole.finish()
    cut = Tuning(base, tunes, "cut")
    process = cut.start()
    while process.poll() is None and not (cut.out / checkpoint.LAST).exists():
        time.sleep(0.001)
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert "Traceback" not in errors, errors
    assert cut.finish()["memory"] == result["memory"]
    for name in (checkpoint.ADAPTER, checkpoint.LAST):
        one, _ = checkpoint.load_arrays(whole.out / name)
        two, _ = checkpoint.load_arrays(cut.out / name)
        assert one.keys() == two.keys()
        assert all(one[key].tobytes() == two[key].tobytes() for key in one), name


def complaint(capsys: Captured, arguments: list[str]) -> str:
    capsys.readouterr()
    assert run(finetune.main, arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    complaints = [line for line in captured.err.splitlines() if line.startswith("kmidi finetune: ")]
    assert len(complaints) == 1, captured.err
    return complaints[0].removeprefix("kmidi finetune: ")


def test_what_is_wrong_is_said_in_a_sentence(
    base: Path, tunes: Path, tmp_path: Path, capsys: Captured
) -> None:
    given = ["--base", str(base), "--data", str(tunes)]
    say = lambda *arguments: complaint(capsys, list(arguments))  # noqa: E731
    assert say("--base", str(base)) == (
        "nothing to learn from: name a folder of music with --data."
    )
    assert say("--base", str(base), "--data", "nowhere") == "no such folder: nowhere."
    missing = say("--base", str(tmp_path / "x"), "--data", str(tunes))
    assert "no such checkpoint" in missing
    # what a person who has only run `make run` can name
    assert missing.endswith("leave a small one: --base out/hello/model.")
    for name in ("../evil", "a/b", "a:b", "..", ".hidden", "a\\b"):
        refused = say(*given, "--name", name)
        assert f"cannot be called {name!r}: a name is that of a folder: letters, digits" in refused
    assert "holds no run to resume" in say(*given, "--resume")
    assert "adapter.rank" in say(*given, "--set", "adapter.rank=0")
    assert "rank 900 does not suit" in say(*given, "--set", "adapter.rank=900")
    assert "no layer to adapt is called 'ears'" in say(*given, "--set", "adapter.targets=[ears]")
    assert "base_bits: 5 is none of" in say(*given, "--set", "adapter.base_bits=5")
    assert "fine-tuning needs lora, dora or full" in say(*given, "--set", "adapter.method=none")
    assert "holds 'midi_generator'; a 'spectocloud'" in say(*given, "--model", "spectocloud")
    tuned(base, tunes)
    assert "already holds a run; use --resume" in say(*given)
    assert "adapter.rank is 4 in the run in" in say(*given, "--resume", "--set", "adapter.rank=8")


def test_a_base_that_changed_is_not_gone_on_with(base: Path, tunes: Path, capsys: Captured) -> None:
    tuned(base, tunes)
    arrays, metadata = checkpoint.load_arrays(base / checkpoint.BEST)
    name = next(iter(arrays))
    arrays[name] = arrays[name] * np.float32(1.01)
    checkpoint.save_arrays(base / checkpoint.BEST, arrays, metadata)
    out = str(base / "adapters" / "tunes")
    said = run(finetune.main, ["--out", out, "--resume", "--set", "training.epochs=8"])
    assert said == 2
    assert "was begun over other weights than those in" in capsys.readouterr().err


def test_help_lists_what_is_used(capsys: Captured) -> None:
    assert run(finetune.main, ["--help-config"]) == 0
    listed = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines() if "." in line)
    used = usual_config("midi_generator")
    assert float(listed["optimizer.learning_rate"]) == used.optimizer.learning_rate == 1e-4
    assert int(listed["training.save_epochs"]) == used.training.save_epochs == 10


def test_steps_that_are_asked_for_win_over_the_usual_epochs(base: Path, tunes: Path) -> None:
    def plan(*overrides: str) -> TrainingConfig:
        made = plan_finetuning(
            "midi_generator", tunes, base, "other", None, None, False, [], overrides
        )
        return made.config.training

    usual, asked = plan(), plan("training.save_every=2")
    assert (usual.save_epochs, usual.eval_epochs) == (10, 1)
    assert (asked.save_every, asked.save_epochs, asked.eval_epochs) == (2, 0, 1)
    assert plan("training.save_every=2", "training.save_epochs=3").save_epochs == 3


def test_a_resume_of_nothing_saved_says_that_it_begins_anew(
    base: Path, tunes: Path, capsys: Captured
) -> None:
    out = tuned(base, tunes)
    assert "begins anew" not in capsys.readouterr().err
    (out / checkpoint.LAST).unlink()
    assert run(finetune.main, ["--out", str(out), "--resume"]) == 0
    assert f"nothing was saved in {out} yet: the run begins anew" in capsys.readouterr().err


def test_an_adapter_on_other_weights_says_so(
    base: Path, tunes: Path, capsys: Captured, tmp_path: Path
) -> None:
    out = tuned(base, tunes)
    arrays, metadata = checkpoint.load_arrays(base / checkpoint.BEST)
    name = next(iter(arrays))
    other = tmp_path / "other"
    other.mkdir()
    arrays[name] = arrays[name] + np.float32(1e-3)
    checkpoint.save_arrays(other / checkpoint.BEST, arrays, metadata)
    capsys.readouterr()
    piece = ["--seconds", "1", "--out", str(tmp_path / "a.mid"), "--adapter", str(out)]
    assert run(generate.main, ["--checkpoint", str(base), *piece]) == 0
    assert "other weights" not in capsys.readouterr().err
    assert run(generate.main, ["--checkpoint", str(other), *piece]) == 0
    assert f"over other weights than those in {other / checkpoint.BEST}" in capsys.readouterr().err


def test_what_learnt_from_practice_music_says_so(
    base: Path, practice_data: Path, capsys: Captured, tmp_path: Path
) -> None:
    """Also where the base did not."""
    arrays, metadata = checkpoint.load_arrays(base / checkpoint.BEST)
    checkpoint.save_arrays(base / checkpoint.BEST, arrays, metadata | {"synthetic": False})
    tuned(base, practice_data, "--name", "practised")
    capsys.readouterr()
    piece = ["--checkpoint", str(base), "--seconds", "1", "--out", str(tmp_path / "a.mid")]
    assert run(generate.main, [*piece, "--json"]) == 0
    plain = capsys.readouterr()
    assert not json.loads(plain.out)["synthetic"]
    assert "practice" not in plain.err
    assert run(generate.main, [*piece, "--json", "--adapter", "practised"]) == 0
    adapted = capsys.readouterr()
    assert json.loads(adapted.out)["synthetic"]
    assert "practised/adapter.safetensors was trained on synthetic practice music" in adapted.err


def test_a_resume_with_other_music_is_refused(
    base: Path, tunes: Path, practice_data: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tuned(base, tunes)
    before = (out / checkpoint.ADAPTER).read_bytes()
    again = ["--base", str(base), "--name", "tunes", "--resume"]
    other = tmp_path / "tunes"
    shutil.copytree(tunes, other)
    for music in (other, practice_data):
        said = complaint(capsys, [*again, "--data", str(music)])
        assert said == (
            f"the run in {out} goes on with the music it was begun with, which is not that in "
            f"{music}; leave out --data, or leave out --resume and give another --name."
        )
    assert (out / checkpoint.ADAPTER).read_bytes() == before
    # its own music, by another way to it; its prepared data; and a folder with more in it
    link = tmp_path / "link"
    link.symlink_to(tunes)
    more = tmp_path / "more"
    more.mkdir()
    for file in [*tunes.iterdir(), *(practice_data / "synthetic").glob("*.mid")]:
        (more / file.name).symlink_to(file)
    for music in (link, out / "data", more):
        assert run(finetune.main, [*again, "--data", str(music)]) == 0


def test_what_fails_early_leaves_no_folder(base: Path, tmp_path: Path, capsys: Captured) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "a.mid").write_bytes(b"no music")
    said = complaint(capsys, ["--base", str(base), "--data", str(one)])
    assert "fine-tuning needs two or more" in said
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert "has no .mid" in complaint(capsys, ["--base", str(base), "--data", str(nothing)])
    assert not (base / checkpoint.ADAPTERS).exists()
