"""Commands that are shown can be pasted."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmidi_mlx.config_file import load_config, load_sections
from kmidi_mlx.train import plan_run, train_parser
from kmidi_mlx.workflow.commands import another, holds_run, moves_of, resumed, shown
from kmidi_mlx.workflow.config import WorkflowConfig
from kmidi_mlx.workflow.journal import Journal
from kmidi_mlx.workflow.report import write_report
from kmidi_mlx.workflow.steps import steps_of

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "mlx_workflow_tiny.yaml"
NAMES = ["training.batch_size", "training.grad_accum_steps", "training.epochs"]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 9)), max_size=8))
def test_settings_are_shown_once_and_mean_the_same(given_: list[tuple[str, int]]) -> None:
    settings = [f"{name}={value}" for name, value in given_]
    command = ("kmidi_mlx.train", *(word for text in settings for word in ("--set", text)))
    words = shlex.split(shown((*command, "--json")))
    left = [after for before, after in pairwise(words) if before == "--set"]
    assert words[:3] == ["python", "-m", "kmidi_mlx.train"]
    assert "--json" not in words
    assert len(left) == len({name for name, _ in given_})
    assert load_config("midi_generator", [], left) == load_config("midi_generator", [], settings)


def test_a_file_of_json_is_kept() -> None:
    assert shown(("bench.live", "--json", "a.jsonl")) == "python -m bench.live --json a.jsonl"
    assert shown(("a", "--json", "--licence", "MIT")) == "python -m a --licence MIT"


@pytest.mark.parametrize("file", ["last/state.safetensors", "best.safetensors"])
def test_a_training_goes_beside_a_run_that_is_there(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "midi_generator"
    command = ("kmidi_mlx.train", "--out", str(folder))
    assert another(command, folder) == command
    (folder / file).parent.mkdir(parents=True)
    (folder / file).touch()
    assert holds_run(folder)
    assert another(command, folder) == ("kmidi_mlx.train", "--out", f"{folder}-again")
    own = folder / "adapters" / "own"
    tune = ("kmidi_mlx.finetune", "--base", str(folder), "--name", "own")
    own.mkdir(parents=True)
    (own / "adapter.safetensors").touch()
    assert another(tune, own) == (*tune[:-1], "own-again")


def test_a_training_is_gone_on_with_by_few_words() -> None:
    command = ("kmidi_mlx.finetune", "--model", "midi_generator", "--base", "b", "--data", "d",
               "--name", "own", "--original", "o", "--fuse", "--json", "--set", "a=1")  # fmt: skip
    assert resumed(command, Path("b/adapters/own")) == (
        *("kmidi_mlx.finetune", "--model", "midi_generator", "--out", "b/adapters/own"),
        *("--resume", "--original", "o", "--fuse", "--json"),
    )


def test_what_has_to_be_moved_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert moves_of(folder) == []
    folder.mkdir()
    assert moves_of(folder) == [f"mv {folder} {folder}.before"]
    (tmp_path / "model.before").mkdir()
    assert moves_of(folder)[0] == f"# {folder}.before is deleted first"


def test_the_report_shows_training_commands_that_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.chdir(ROOT)
    config = load_sections(WorkflowConfig, [TINY], [f"workflow.out={out}"])
    steps = steps_of(config)
    journal = Journal(out)
    folder = out / "midi_generator"
    (folder / "last").mkdir(parents=True)
    for file in ("last/state.safetensors", "best.safetensors"):
        (folder / file).touch()
    rows = ['{"step": 10, "loss": 3.0, "peak_memory_gb": 2.5}', '{"step": 20, "loss": 2.0}']
    (folder / "metrics.jsonl").write_text("\n".join(rows))
    entry = journal["train-midi_generator"]
    entry.done = entry.begun = "1"
    entry.results = [{"step": 20, "seconds": 9, "best_step": 20, "val_loss": 2.0,
                      "skipped_steps": 0, "peak_memory_gb": 1.5}]  # fmt: skip
    write_report(config, steps, journal, out)
    report = (out / "report.md").read_text()
    # the part that was cut off counts too
    assert "the framework took 2.50 GB at the most" in report
    command = report.partition("```sh\n")[2].partition("\n```")[0]
    assert command.count("training.batch_size") == 1
    arguments = shlex.split(command)[3:]
    parser = train_parser("kmidi train", "")
    plan = plan_run(parser.parse_args(arguments))
    assert plan.out == Path(f"{folder}-again")
    assert plan.config.data.path == str(out / "data" / "midi")  # type: ignore[attr-defined]
