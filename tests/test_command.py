from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

import kmidi_mlx
from kmidi_mlx.__main__ import COMMANDS
from kmidi_mlx.__main__ import main as kmidi
from kmidi_mlx.command import CommandParser, add_config_arguments, interruptible, run
from kmidi_mlx.errors import KmidiError

SCRIPT = """
import sys, time
from kmidi_mlx.command import interruptible, run
from kmidi_mlx.errors import KmidiError

def main(argv):
    if argv[0] == "input":
        raise KmidiError("a.mid, line 3: bad\\nnumber.")
    if argv[0] == "bug":
        raise ZeroDivisionError("a bug")
    if argv[0] == "missing":
        open("no/such/file")
    if argv[0] == "print":
        print("x" * 1_000_000)
    if argv[0] == "check":
        return 1
    if argv[0] == "sleep":
        print("ready", flush=True)
        time.sleep(30)
    if argv[0] == "loop":
        with interruptible() as interruption:
            print("ready", flush=True)
            deadline = time.monotonic() + 30
            while not (interruption.requested and argv[1:] != ["on"]):
                time.sleep(0.01)
                if interruption.requested and argv[1:] == ["on"]:
                    print("asked", flush=True)
                    time.sleep(30)
                if time.monotonic() > deadline:
                    return 3
            print("saved")
            return 130

if __name__ == "__main__":
    sys.exit(run(main))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("command") / "work.py"
    path.write_text(SCRIPT)
    return path


def execute(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def start(script: Path, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_exit_statuses(script: Path) -> None:
    assert execute(script, "nothing").returncode == 0
    assert execute(script, "check").returncode == 1
    bug = execute(script, "bug")
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr


def test_wrong_input_is_one_line(script: Path) -> None:
    result = execute(script, "input")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "kmidi: a.mid, line 3: bad number.\n"
    result = execute(script, "missing")
    assert result.returncode == 2
    assert result.stderr == "kmidi: No such file or directory (no/such/file).\n"


def test_a_module_run_by_python_has_its_name_in_front(script: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "train.py").write_text(script.read_text())
    for name, title in [("package.train", "kmidi train"), ("package", "kmidi")]:
        (package / "__main__.py").write_text(script.read_text())
        result = subprocess.run(
            [sys.executable, "-m", name, "input"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.stderr == f"{title}: a.mid, line 3: bad number.\n"


def test_a_reader_that_went_away_is_no_drama(script: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(script), "print"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stream:
        assert stream.read() == b""
    assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_stdout_is_one_line(script: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, str(script), "print"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 2
    assert result.stderr == "kmidi: No space left on device.\n"


def test_ctrl_c_is_130_without_a_traceback(script: Path) -> None:
    with start(script, "sleep") as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "kmidi: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_a_loop_finish(script: Path, number: signal.Signals) -> None:
    with start(script, "loop") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "saved\n", "")


def test_the_second_ctrl_c_stops_at_once(script: Path) -> None:
    with start(script, "loop", "on") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "kmidi: interrupted\n")


def test_handlers_come_back_and_ignored_signals_stay_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as interruption:
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.requested
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_threads_change_no_handlers() -> None:
    seen = []

    def work() -> None:
        with interruptible() as interruption:
            seen.append((interruption.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGTERM))]


def make_parser() -> CommandParser:
    parser = CommandParser(prog="kmidi train")
    parser.add_argument("--model", required=True, choices=["midi_generator", "spectocloud"])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("-o", "--out", required=True)
    add_config_arguments(parser)
    return parser


GOOD = ["--model", "midi_generator", "--out", "x"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--modle", "x"], "unknown option --modle; did you mean --model? see kmidi train --help."),
        ([*GOOD, "--secs=3"], "unknown option --secs; did you mean --seconds? see"),
        ([*GOOD, "--zzzzzzz"], "unknown option --zzzzzzz; see kmidi train --help."),
        ([*GOOD, "--mod", "x"], "unknown option --mod; did you mean --model?"),
        ([*GOOD, "stray"], "unknown arguments: stray; see kmidi train --help."),
        ([*GOOD, "-x"], "unknown arguments: -x;"),
        ([*GOOD, "--seconds", "x"], "--seconds: invalid float value: 'x';"),
        ([*GOOD, "--seconds"], "--seconds: expected one argument;"),
        ([], "the following arguments are required: --model, -o/--out;"),
        (["--model", "midi_genrator"], "--model: unknown choice 'midi_genrator'; did you mean "
         "midi_generator? see"),
        (["--model", "q"], "--model: unknown choice 'q'; choose from midi_generator, spectocloud;"),
    ],
)  # fmt: skip
def test_parser_complaints_are_one_sentence(arguments: list[str], expected: str) -> None:
    with pytest.raises(KmidiError) as caught:
        make_parser().parse_args(arguments)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_parser_knows_the_flags_of_its_sub_commands() -> None:
    parser = CommandParser(prog="kmidi prepare")
    kinds = parser.add_subparsers(dest="kind", required=True)
    midi = kinds.add_parser("midi")
    midi.add_argument("source", nargs="+", type=Path)
    midi.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args(["midi", "a", "b", "--out", "c"])
    assert (arguments.kind, arguments.source, arguments.out) == (
        "midi",
        [Path("a"), Path("b")],
        Path("c"),
    )
    for wrong, expected in [
        (["midi", "a", "--ouy", "c"], "unknown option --ouy; did you mean --out?"),
        (["mdi", "a"], "kind: unknown choice 'mdi'; did you mean midi?"),
        (["midi", "a"], "the following arguments are required: --out; see kmidi prepare midi"),
        ([], "the following arguments are required: kind;"),
    ]:
        with pytest.raises(KmidiError) as caught:
            parser.parse_args(wrong)
        assert str(caught.value).startswith(expected)


def test_config_arguments_repeat_and_start_empty() -> None:
    parser = make_parser()
    arguments = parser.parse_args(GOOD)
    assert (arguments.config_files, arguments.overrides) == ([], [])
    more = ["--config", "a.yaml", "--set", "a.b=1", "--config=b.yaml", "--set=c.d=--x y"]
    arguments = parser.parse_args([*GOOD, *more])
    assert arguments.config_files == [Path("a.yaml"), Path("b.yaml")]
    assert arguments.overrides == ["a.b=1", "c.d=--x y"]
    assert parser.parse_args(GOOD).overrides == []


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert kmidi(arguments) == 0
        shown = capsys.readouterr().out
        for name, purpose in COMMANDS.items():
            assert f"  {name.ljust(10)} {purpose}\n" in shown
    assert kmidi(["--version"]) == 0
    assert capsys.readouterr().out == f"kmidi {kmidi_mlx.__version__}\n"


def test_every_command_has_its_module() -> None:
    assert [name for name in COMMANDS if importlib.util.find_spec(f"kmidi_mlx.{name}")] == list(
        COMMANDS
    )


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert kmidi(["trian", "--help"]) == 2
    assert capsys.readouterr().err == "kmidi: unknown command 'trian'; did you mean train?\n"
    assert kmidi(["--verbose"]) == 2
    assert f"there are {', '.join(COMMANDS)}.\n" in capsys.readouterr().err


def test_dispatch_hands_over_arguments_status_and_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = types.ModuleType("kmidi_mlx.train")

    def main(argv: list[str]) -> int:
        if argv == ["bad"]:
            raise KmidiError("there is no data.")
        return len(argv)

    main.__module__ = module.__name__
    monkeypatch.setattr(module, "main", main, raising=False)
    monkeypatch.setitem(sys.modules, "kmidi_mlx.train", module)
    assert kmidi(["train", "a", "b", "--help"]) == 3
    assert kmidi(["train", "bad"]) == 2
    assert capsys.readouterr().err == "kmidi train: there is no data.\n"


def test_run_as_module_needs_no_framework() -> None:
    code = (
        "import sys; sys.modules['mlx'] = sys.modules['torch'] = None\n"
        "import kmidi_mlx.config_file, kmidi_mlx.console, kmidi_mlx.atomic\n"
        "from kmidi_mlx.__main__ import main; sys.exit(main(['--version']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"kmidi {kmidi_mlx.__version__}\n"
    result = subprocess.run(
        [sys.executable, "-m", "kmidi_mlx", "nonsense"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == f"kmidi: unknown command 'nonsense'; there are {', '.join(COMMANDS)}.\n"


def test_run_without_a_status_is_success() -> None:
    assert run(lambda argv: None, ["a"]) == 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mlx.core", "this needs MLX, which is not installed"),
        ("torch", "this needs PyTorch, which is not installed"),
    ],
)
def test_a_framework_that_is_missing_is_one_line(
    capsys: pytest.CaptureFixture[str], name: str, sentence: str
) -> None:
    def needs_it(argv: list[str]) -> int:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    assert run(needs_it, []) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def test_another_module_that_is_missing_is_a_bug() -> None:
    def broken(argv: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'kmidi_mlx.nothing'", name="kmidi_mlx.nothing")

    with pytest.raises(ModuleNotFoundError):
        run(broken, [])
