"""`python -m kmidi_torch.plan` as a person uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kmidi_mlx.command import run
from kmidi_torch import plan
from tests.cloud.rented import CLOUD

Captured = pytest.CaptureFixture[str]

PRICES = """
here:
  billed: {seconds: 60, least: 60}
  source: a sign at the door
  gpus:
    RTX4090:
      on_demand: {usd: 1.0, date: 2026-11}
      spot: {usd: 0.25, date: 2026-11-02, source: a friend}
    A100:
      machine: 8
      on_demand: {usd: 2.0, date: 2026-11}
"""


@pytest.fixture
def prices(tmp_path: Path) -> list[str]:
    (tmp_path / "prices.yaml").write_text(PRICES, "utf-8")
    return ["--prices", str(tmp_path / "prices.yaml")]


def answer(capsys: Captured, *arguments: str) -> list[dict[str, Any]]:
    assert run(plan.main, [*arguments, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def complaint(capsys: Captured, *arguments: str) -> str:
    assert run(plan.main, list(arguments)) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line


def test_a_plan_says_where_every_number_comes_from(prices: list[str], capsys: Captured) -> None:
    assert run(plan.main, [*prices, "--provider", "here"]) == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines() if line.startswith("here ")]
    assert [row[1:5] for row in rows] == [
        [gpu, count, model, "estimated"]
        for gpu, count in (("RTX4090", "1"), ("A100", "8"))
        for model in ("midi_generator", "spectocloud", "both")
    ]
    assert "estimated: 0.3 (0.2-0.4) of the GPU's peak, but 15 (8-30) ms a pass at least" in text
    assert "both are assumed, not measured" in text
    assert "estimated, RTX4090: 165.2 TFLOP/s in bf16 by the maker's data sheet" in text
    assert "15 min to rent, install and copy (assumed)" in text
    assert "price, here RTX4090: 2026-11, a sign at the door" in text
    assert "several GPUs are assumed to lose nothing" in text
    assert "python -m bench.train_torch --only MODEL" in text
    assert run(plan.main, [*prices, "--spot"]) == 0
    text = capsys.readouterr().out
    assert "A100" not in text
    assert "price, here RTX4090: 2026-11-02, a friend" in text


def test_a_speed_that_is_given_or_measured_replaces_the_estimate(
    prices: list[str], tmp_path: Path, capsys: Captured
) -> None:
    only = [*prices, "--gpu", "RTX4090"]
    lines = answer(capsys, *only, "--tokens-per-second", "100000")
    speeds = [each.get("tokens_per_second") for line in lines for each in line["runs"]]
    assert [speed["kind"] for speed in speeds if speed] == ["given", "given"]
    hours = 30_000 * 65_536 / 1e5 / 3600
    assert lines[0]["likely"]["hours"] == pytest.approx(hours * (1 + 20 / 1500) + 20 / 60, abs=0.02)
    assert lines[0]["likely"]["dollars"] == pytest.approx(lines[0]["likely"]["hours"])
    row = {
        "model": "spectocloud", "device": "NVIDIA GeForce RTX 4090", "precision": "bf16",
        "points": 1200, "clouds_per_second": 3e3, "clouds_per_second_p10": 2e3,
        "clouds_per_second_p90": 4e3,
    }  # fmt: skip
    (tmp_path / "measured.jsonl").write_text(json.dumps(row), "utf-8")
    measured = ["--throughput", str(tmp_path / "measured.jsonl")]
    assert run(plan.main, [*only, *measured]) == 0
    text = capsys.readouterr().out
    assert [line.split()[4] for line in text.splitlines() if line.startswith("here ")] == [
        "estimated",
        "measured",
        "estimated",  # both: its second kind follows
    ]
    assert "estimated + measured" in text
    assert "measured, RTX4090, spectocloud: on NVIDIA GeForce RTX 4090" in text


def test_a_budget_puts_the_best_choice_first(prices: list[str], capsys: Captured) -> None:
    lines = answer(capsys, *prices, "--budget", "2", "--model", "midi_generator")
    assert [line["gpu"] for line in lines] == ["RTX4090"]  # eight A100 cost more to start
    lines = answer(capsys, *prices, "--budget", "12", "--model", "midi_generator")
    assert [line["runs"][0]["steps"] for line in lines] == sorted(
        (line["runs"][0]["steps"] for line in lines), reverse=True
    )
    assert all(line["slow"]["dollars"] <= 12 for line in lines)
    assert run(plan.main, [*prices, "--budget", "2"]) == 0
    text = capsys.readouterr().out
    assert "steps: what $2 pays for" in text
    assert run(plan.main, [*prices, "--budget", "0.01"]) == 0
    assert "$0.01 pays for no step" in capsys.readouterr().out


def test_every_offer_stays_together_with_both_last(prices: list[str], capsys: Captured) -> None:
    for budget in ("2", "4", "12", "500"):
        lines = answer(capsys, *prices, "--budget", budget)
        names = ["+".join(run["model"] for run in line["runs"]) for line in lines]
        offers = [(line["provider"], line["gpu"]) for line in lines]
        groups = {
            offer: [name for name, own in zip(names, offers, strict=True) if own == offer]
            for offer in dict.fromkeys(offers)
        }
        # each offer once, in one piece, and what is for both behind its parts
        assert [offer for offer, own in groups.items() for _ in own] == offers
        for own in groups.values():
            assert own == [
                name
                for name in ("midi_generator", "spectocloud", "midi_generator+spectocloud")
                if name in own
            ]
        lasts = [line for line in lines if len(line["runs"]) == 2]
        shares = [line["runs"][0]["steps"] for line in lasts]
        assert shares == sorted(shares, reverse=True)
    assert run(plan.main, [*prices, "--budget", "500"]) == 0
    assert "both: one after the other on one machine" in capsys.readouterr().out


def test_what_is_over_at_once_stays_at_home(
    prices: list[str], practice_data: Path, capsys: Captured
) -> None:
    advice = "for so little a rented GPU makes no sense, train at home"
    assert run(plan.main, [*prices, "--data", str(practice_data)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if advice in line]
    assert [line.partition(":")[0] for line in said] == ["midi_generator"]
    assert run(plan.main, prices) == 0
    assert advice not in capsys.readouterr().out


def test_data_tell_how_many_steps_there_are(
    prices: list[str],
    practice_data: Path,
    practice_clouds: Path,
    tiny_settings: list[str],
    capsys: Captured,
) -> None:
    data = ["--data", str(practice_data), "--data", str(practice_clouds)]
    for line in answer(capsys, *prices, *data, "--gpu", "RTX4090"):
        for each in line["runs"]:
            epochs = {"midi_generator": 15, "spectocloud": 20}[each["model"]]
            assert each["epochs"] == epochs
            assert each["steps"] % epochs == 0
    sets = [word for setting in tiny_settings for word in ("--set", setting)]
    tiny = ["--model", "midi_generator", *sets, "--gpu", "RTX4090"]
    (line,) = answer(capsys, *prices, *tiny)
    assert line["runs"][0]["steps"] == 20
    assert run(plan.main, [*prices, *data]) == 0
    assert "15 epochs) of 65,536 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--provider", "lamda"], "unknown provider 'lamda'; did you mean lambda?"),
        (["--gpu", "RTX4080"], "has no 'RTX4080'; did you mean RTX4090?"),
        (["--provider", "lambda", "--spot"], "has no spot price of lambda"),
        (["--gpus", "0"], "--gpus 0: give 1 or more."),
        (["--budget", "-5"], "--budget -5: give dollars above 0."),
        (["--tokens-per-second", "0"], "--tokens-per-second 0: give a number above 0."),
        (["--set", "training.max_steps=5"], "name it with --model."),
        (["--model", "midi_generator", "--set", "training.steps=5"], "training.steps"),
        (["--throughput", "/nowhere"], "--throughput /nowhere does not exist."),
        (["--prices", "/nowhere"], "/nowhere does not exist"),
        (["--data", "/nowhere"], "--data /nowhere is no prepared data"),
        (["--model", "emotion_recognizer"], "unknown choice 'emotion_recognizer'"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], said: str, capsys: Captured) -> None:
    line = complaint(capsys, *arguments)
    assert line.startswith("kmidi plan: ")
    assert said in line


def test_data_of_another_model_are_refused(practice_clouds: Path, capsys: Captured) -> None:
    line = complaint(capsys, "--model", "midi_generator", "--data", str(practice_clouds))
    assert "is not for midi_generator." in line


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (PRICES, "", "holds no prices"),
        (PRICES, "here: 5", "line 1: here: expected names"),
        ("usd: 1.0", "usd: -1", "line 6: usd: expected a number above 0."),
        ("usd: 1.0", "usd: 1.0, eur: 2", "line 6: unknown eur"),
        ("date: 2026-11}\n      spot", "date: last week}\n      spot", "line 6: date last week"),
        ("usd: 1.0, date: 2026-11", "usd: 1.0", "line 6: on_demand lacks date."),
        ("    RTX4090:", "    RTX409:", "unknown GPU RTX409; did you mean RTX 4090?"),
        ("      machine: 8", "      machine: 0.5", "line 9: machine: expected a whole number"),
        ("      machine: 8\n      on_demand: {usd: 2.0, date: 2026-11}", "      machine: 8",
         "A100 has no price"),
        ("on_demand: {usd: 2.0", "ondemand: {usd: 2.0", "unknown ondemand"),
        ("here:", "here: &x", "anchors"),
        ("    A100:", "    RTX4090:", "RTX4090 is given twice"),
    ],
)  # fmt: skip
def test_a_table_that_is_wrong_is_refused_with_its_line(
    old: str, new: str, said: str, tmp_path: Path, capsys: Captured
) -> None:
    assert old in PRICES
    (tmp_path / "prices.yaml").write_text(PRICES.replace(old, new).lstrip(), "utf-8")
    line = complaint(capsys, "--prices", str(tmp_path / "prices.yaml"))
    assert f"{tmp_path / 'prices.yaml'}" in line
    assert said in line


def test_the_table_names_a_date_and_a_source_for_every_price() -> None:
    text = (CLOUD / "prices.yaml").read_text("utf-8")
    for offer in plan.read_prices(CLOUD / "prices.yaml"):
        for price in filter(None, (offer.on_demand, offer.spot)):
            assert price.date >= "2026-01"
            assert len(price.source) > 10
    assert "://" not in text


def test_a_plan_needs_no_framework() -> None:
    script = (
        "import sys\nsys.modules['torch'] = sys.modules['mlx'] = None\n"
        "from kmidi_mlx.command import run\nfrom kmidi_torch import plan\n"
        "sys.exit(run(plan.main, ['--provider', 'all', '--budget', '50']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "both" in done.stdout
