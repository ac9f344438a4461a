from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kmidi_mlx
from kmidi_mlx import checkpoint
from kmidi_mlx.checkpoint import check_names, exclusive, load_arrays, save_arrays
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.torch_file import write_torch_file

ARRAYS: dict[str, NDArray[Any]] = {
    "blocks.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "step": np.array(12, np.uint64),
    "half": np.array([1.5, np.inf, np.nan], np.float16),
    "empty": np.zeros((0, 3), np.float32),
}
METADATA: dict[str, Any] = {
    "model": "midi_generator",
    "config": {"name": "midi_generator", "model": {"cross_attention_layers": [0, 2]}},
    "step": 12,
    "metric": 2.25,
    "best_loss": float("inf"),
    "licences": ["CC-BY 4.0", "Öffentlich"],
    "synthetic": False,
    "nothing": None,
}

# saves over an old file with less room on the disk than the new one needs
FULL_DISK = """
import resource, sys
import numpy as np
from pathlib import Path
from kmidi_mlx.checkpoint import save_arrays
from kmidi_mlx.command import run

def main(argv):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save_arrays(Path(argv[0]), {"weight": np.ones(100_000, np.float32)}, {})

sys.exit(run(main))
"""

KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from kmidi_mlx.checkpoint import exclusive, save_arrays
folder = Path(sys.argv[1])
with exclusive(folder):
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
    save_arrays(folder / "last" / "state.safetensors", {"weight": np.ones(1000)}, {})
"""


HOLDER = """
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from kmidi_mlx.checkpoint import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.folder),))


def header(text: str, payload: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + payload


# --- round trip ----------------------------------------------------------------------------------


def test_arrays_and_metadata_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "best.safetensors"
    save_arrays(path, ARRAYS, METADATA)
    arrays, metadata = load_arrays(path)
    assert sorted(arrays) == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype, name
        assert arrays[name].shape == array.shape, name
        assert arrays[name].tobytes() == array.tobytes(), name
    assert metadata == METADATA | {"format_version": checkpoint.FORMAT_VERSION}


def test_views_are_saved_by_what_they_show(tmp_path: Path) -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    views = {"turned": base.T, "every other": base[:, ::2], "backwards": base[::-1]}
    save_arrays(tmp_path / "a.safetensors", views, {})
    arrays, _ = load_arrays(tmp_path / "a.safetensors")
    for name, view in views.items():
        np.testing.assert_array_equal(arrays[name], view)


def test_the_file_is_one_that_the_safetensors_library_reads(tmp_path: Path) -> None:
    import safetensors.numpy

    save_arrays(tmp_path / "a.safetensors", ARRAYS, METADATA)
    theirs = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert sorted(theirs) == sorted(ARRAYS)


# --- crashes and full disks ----------------------------------------------------------------------


def test_a_full_disk_keeps_the_old_file_and_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_arrays(path, ARRAYS, METADATA)
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert f"cannot write {path}: " in done.stderr
    assert done.stderr.rstrip().endswith(("File too large.", "No space left on device."))
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["best.safetensors"]


def test_a_kill_in_the_middle_keeps_the_old_file_and_the_next_run_tidies_up(
    tmp_path: Path,
) -> None:
    path = tmp_path / "last" / "state.safetensors"
    save_arrays(path, ARRAYS, METADATA)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2
    with exclusive(tmp_path):
        assert [item.name for item in path.parent.iterdir()] == ["state.safetensors"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("call", ["pathlib.Path.mkdir", "safetensors.numpy.save_file"])
def test_a_folder_without_permission_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object, **__: object) -> None:  # the superuser may write anywhere
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(call, refuse)
    with pytest.raises(KmidiError, match="Permission denied"):
        save_arrays(tmp_path / "a.safetensors", ARRAYS, {})
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "last").write_text("not a folder")
    with pytest.raises(KmidiError, match=r"cannot make the folder .*last"):
        save_arrays(tmp_path / "last" / "state.safetensors", ARRAYS, {})


# --- files that cannot be used -------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match=r"^no such checkpoint: .*best\.safetensors"):
        load_arrays(tmp_path / "best.safetensors")


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_arrays(path, ARRAYS, METADATA)
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 20, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(KmidiError, match=r"best\.safetensors is not a readable safetensors"):
            load_arrays(path)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + bytes(100),
        b"MThd\x00\x00\x00\x06" + bytes(100),
        bytes(1000),
        b"\xff" * 1000,
        header("{not json"),
        header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(4)),
        header('{"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
        header('{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', bytes(8)),
        header('{"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}', bytes(3)),
        header('{"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}', bytes(2)),
    ],
)
def test_files_of_another_kind_are_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(KmidiError, match=r"foreign\.safetensors is not a readable safetensors"):
        load_arrays(path)


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="is not a readable safetensors file"):
        load_arrays(tmp_path)


@pytest.mark.parametrize("version", [checkpoint.FORMAT_VERSION + 1, 999, "2", None, 1.5])
def test_a_newer_format_asks_for_an_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", version)
        save_arrays(tmp_path / "new.safetensors", ARRAYS, METADATA)
    with pytest.raises(KmidiError, match=rf"new\.safetensors has format version {version};.*updat"):
        load_arrays(tmp_path / "new.safetensors")


def test_metadata_of_other_makers_stays_text(tmp_path: Path) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file(
        {"a": np.ones(2)}, tmp_path / "theirs.safetensors", metadata={"format": "pt", "n": "3"}
    )
    _, metadata = load_arrays(tmp_path / "theirs.safetensors")
    assert metadata == {"format": "pt", "n": 3}


@pytest.mark.parametrize("name", ["best.safetensors", "best.pt", "model.bin"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_refused_and_nothing_in_it_runs(
    tmp_path: Path, name: str, protocol: int
) -> None:
    from kmidi_mlx.models.loading import load_generator

    trap = tmp_path / "sprung"
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Trap(trap), protocol))
    complaint = "is not a PyTorch file" if path.suffix == ".pt" else "is not a readable safetensors"
    with pytest.raises(KmidiError, match=complaint):
        load_arrays(path)
    with pytest.raises(KmidiError, match=complaint):
        load_generator(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists()  # the trap works


def test_a_torch_file_is_read_by_its_suffix(tmp_path: Path) -> None:
    for name in ("best.pt", "best.pth"):
        write_torch_file(tmp_path / name, ARRAYS, METADATA)
        arrays, metadata = load_arrays(tmp_path / name)
        assert metadata == METADATA
        assert all(arrays[key].tobytes() == ARRAYS[key].tobytes() for key in ARRAYS)


@pytest.mark.parametrize("version", [checkpoint.FORMAT_VERSION + 1, "2", None, 1.5])
def test_a_torch_file_of_a_newer_format_asks_for_an_update(tmp_path: Path, version: Any) -> None:
    write_torch_file(tmp_path / "new.pt", ARRAYS, {"format_version": version})
    with pytest.raises(KmidiError, match=rf"new\.pt has format version {version};.*updat"):
        load_arrays(tmp_path / "new.pt")


def test_bfloat16_is_widened_exactly_and_told(tmp_path: Path) -> None:
    entries = {
        "wide": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [4, 12]},
        "plain": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    numbers = np.array([7.0], "<f4").tobytes()
    numbers += np.array([0x3F80, 0xC000, 0x3FC0, 0x7F7F], "<u2").tobytes()
    path = tmp_path / "half.safetensors"
    path.write_bytes(header(json.dumps(entries), numbers))
    stored = checkpoint.load_stored(path)
    assert stored.widened == ("wide",)
    assert stored.arrays["wide"].dtype == np.float32
    assert stored.arrays["wide"].tolist() == [[1.0, -2.0], [1.5, 3.3895313892515355e38]]
    assert stored.arrays["plain"].tolist() == [7.0]


def test_metadata_nested_without_end_stay_text(tmp_path: Path) -> None:
    import safetensors.numpy

    text = "[" * 100_000
    safetensors.numpy.save_file({}, tmp_path / "a.safetensors", metadata={"deep": text})
    assert load_arrays(tmp_path / "a.safetensors")[1] == {"deep": text}


def test_all_names_that_do_not_fit_are_listed_at_once() -> None:
    arrays = {
        "kept": np.zeros((2, 3)),
        "flat": np.zeros(6),
        "scalar": np.zeros(1),
        "foreign.a": np.zeros(1),
        "foreign.b": np.zeros(1),
    }
    expected = {"kept": (2, 3), "flat": (3, 2), "scalar": (), "gone.a": (1,), "gone.b": (1,)}
    with pytest.raises(KmidiError) as caught:
        check_names(Path("x/best.safetensors"), arrays, expected)
    assert str(caught.value) == (
        "x/best.safetensors does not fit this model; missing: gone.a, gone.b; "
        "unexpected: foreign.a, foreign.b; misshapen: flat is (6,), not (3, 2), "
        "scalar is (1,), not ()."
    )
    check_names(Path("x"), {"kept": np.zeros((2, 3))}, {"kept": (2, 3)})


# --- the lock ------------------------------------------------------------------------------------


@contextmanager
def another_run(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a folder until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.communicate(timeout=30)


def test_a_second_run_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with another_run(folder):
        with (
            pytest.raises(KmidiError, match=r"another run is training into .*run; give another"),
            exclusive(folder),
        ):
            pass
        with exclusive(tmp_path / "new"):
            pass  # another folder is free
    with exclusive(folder):
        pass


def test_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    with another_run(tmp_path) as process:
        process.kill()
        process.wait(30)
        with exclusive(tmp_path):
            pass


def test_the_lock_is_let_go_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), exclusive(tmp_path):
        raise ValueError("broken")
    with exclusive(tmp_path):
        pass


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with pytest.raises(ValueError, match="broken"), exclusive(folder):
        raise ValueError("broken")
    assert not list(tmp_path.iterdir())
    with exclusive(folder):
        (folder / "best.safetensors").write_text("weights")
    assert (folder / "best.safetensors").exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KmidiError, match=r"cannot write into .*file"), exclusive(tmp_path / "file"):
        pass


# --- provenance ----------------------------------------------------------------------------------


def test_the_commit_is_that_of_the_source_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "kmidi_mlx"
    package.mkdir()
    monkeypatch.setattr(kmidi_mlx, "__file__", str(package / "__init__.py"))
    assert checkpoint.git_commit() == f"v{kmidi_mlx.__version__}"

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    commit = checkpoint.git_commit()
    assert len(commit) == 12
    assert int(commit, 16) >= 0

    tracked = tmp_path / "tracked"
    tracked.write_text("a")
    git("add", "tracked")
    git("commit", "-q", "-m", "second")
    os.utime(tracked, (1, 1))
    index = (tmp_path / ".git" / "index").stat().st_mtime_ns
    assert len(checkpoint.git_commit()) == 12
    tracked.write_text("b")
    assert checkpoint.git_commit().endswith("-dirty")
    # who is killed while git writes its index leaves a lock in the person's repository
    assert (tmp_path / ".git" / "index").stat().st_mtime_ns == index

    # installed below the project of somebody else, whose commits say nothing about kmidi
    installed = tmp_path / "venv" / "kmidi_mlx"
    installed.mkdir(parents=True)
    monkeypatch.setattr(kmidi_mlx, "__file__", str(installed / "__init__.py"))
    assert checkpoint.git_commit() == f"v{kmidi_mlx.__version__}"


def test_the_metadata_of_a_trained_model_says_where_it_is_from(tiny_run: Path) -> None:
    arrays, metadata = load_arrays(tiny_run / checkpoint.BEST)
    assert metadata["model"] == "midi_generator"
    assert metadata["synthetic"] is True
    assert metadata["step"] in (10, 20)
    assert metadata["metric"] > 0
    assert metadata["config"]["model"]["hidden_dim"] == 64
    assert metadata["data_licences"]
    assert metadata["data_labels"]
    assert metadata["commit"]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    json.dumps(metadata, allow_nan=False)
