from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kmidi_mlx.atomic import atomic_write, remove_leftovers, write_bytes_atomically
from kmidi_mlx.errors import KmidiError

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.errors import KmidiError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_bytes_atomically(Path(sys.argv[1]), b"n" * 100_000)
except KmidiError as error:
    print(error)
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from kmidi_mlx.atomic import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_writes_new_and_replaces_old(tmp_path: Path) -> None:
    path = tmp_path / "song.mid"
    write_bytes_atomically(path, b"old")
    assert path.read_bytes() == b"old"
    write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [item.name for item in tmp_path.iterdir()] == ["song.mid"]


def test_the_name_changes_hands_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"old")
    with atomic_write(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".safetensors"
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_block_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(KmidiError, match="cannot write"), atomic_write(path):
        pass
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(
    tmp_path: Path, old: bytes | None
) -> None:
    path = tmp_path / "tokens.bin"
    if old is not None:
        path.write_bytes(old)
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"cannot write {path}: File too large.\n"
    assert (path.read_bytes() if path.exists() else None) == old
    assert len(list(tmp_path.iterdir())) == (old is not None)


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"old")
    result = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_folders_devices_and_missing_folders_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, expected in [
        (pipe, "not a regular file"),
        (folder, "not a regular file"),
        (Path(os.devnull), "not a regular file"),
        (tmp_path / "none" / "a.mid", r"the folder .*none does not exist"),
    ]:
        with pytest.raises(KmidiError, match=expected):
            write_bytes_atomically(path, b"x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    link.symlink_to(target.name)
    write_bytes_atomically(link, b"x")
    assert link.is_symlink()
    assert target.read_bytes() == b"x"


def test_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a"
    earlier = os.umask(0o027)
    try:
        write_bytes_atomically(path, b"new file: what the umask leaves")
    finally:
        os.umask(earlier)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    write_bytes_atomically(path, b"old file: what it had")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_as_long_as_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".mid")
    write_bytes_atomically(path, b"x")
    assert path.read_bytes() == b"x"


def test_a_new_file_is_as_readable_as_any_whatever_its_writer_does(tmp_path: Path) -> None:
    (tmp_path / "any").write_bytes(b"")
    with atomic_write(tmp_path / "new") as temporary:
        temporary.touch(mode=0o600)
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_what_killed_processes_left_goes_and_nothing_else(tmp_path: Path) -> None:
    left = [".tmp-0123456789ab.safetensors", ".tmpJblJ8h"]
    kept = ["state.safetensors", ".tmp", ".tmpJblJ8h2", ".tmpJb.J8h", ".lock", "tmpJblJ8h"]
    for name in left + kept:
        (tmp_path / name).write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_leftovers(tmp_path / "none")
