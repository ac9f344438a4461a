"""Files to and from the Hugging Face hub, or a server that speaks like it (HF_ENDPOINT).

What comes from there is taken by name, size and checksum, and nothing but the files that kmidi
shares. Logins are the library's own: `hf auth login` or HF_TOKEN; no message of ours repeats what a
server or the library says, so none holds a token or a signed address.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kmidi_mlx import checkpoint
from kmidi_mlx.errors import KmidiError, system_reason
from kmidi_mlx.sharing import ORIGIN, Part, check_configs, is_shared, read_parts

__all__ = ["Pulled", "RemoteFile", "check_repository", "pull", "push"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# what a file may weigh by its suffix, in bytes; texts are read whole
_LARGEST = {".safetensors": 64 << 30, ".jsonl": 256 << 20, ".yaml": 1 << 20, ".md": 1 << 20}
_ANSWER_SECONDS = 30.0
_PULLING = ".tmp-pull-"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its size in bytes, and its SHA-256 or its Git blob's id, if told."""

    name: str
    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True)
class Pulled:
    """What was pulled.

    Attributes:
        revision: commit that the files are of.
        parts: model and adapters.
        left_out: names of files that kmidi does not take.
    """

    revision: str
    parts: list[Part]
    left_out: list[str]


def check_repository(name: str) -> str:
    """Return the name of a repository.

    Raises:
        KmidiError: when it has not the form USER/NAME.
    """
    if not _REPOSITORY.fullmatch(name):
        raise KmidiError(f"{name[:80]!r} is no repository; give USER/NAME.")
    return name


def push(
    folder: Path, repository: str, private: bool, revision: str | None, message: str
) -> tuple[str, str]:
    """Upload every file of a folder in one commit; the repository is made when missing.

    Args:
        folder: with nothing but what is to be shared.
        repository: `USER/NAME`.
        private: make it so; one that is there and public is refused.
        revision: branch, made when missing; None: the main one.
        message: of the commit.

    Returns:
        Address and id of the commit.

    Raises:
        KmidiError: when there is no login, no network, or the server refuses.
    """
    library = _library()
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    strangers = [name for name in names if not is_shared(name)]
    if strangers:
        raise KmidiError(f"{strangers[0]} is not one of the files that are shared.")
    with _asking(repository):
        if library.get_token() is None:
            raise KmidiError("push needs a login: `hf auth login`, or a token in HF_TOKEN.")
        api = library.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(repository, timeout=_ANSWER_SECONDS).private:
            raise KmidiError(
                f"{repository} is there and public, so --private cannot hold; make it private on "
                "its page first, or give another name."
            )
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repository,
            [library.CommitOperationAdd(name, folder / name) for name in names],
            commit_message=message,
            revision=revision,
        )
    return str(commit.commit_url), str(commit.oid)


def pull(
    repository: str,
    out: Path,
    revision: str | None = None,
    force: bool = False,
    check: Callable[[list[Part]], None] = lambda parts: None,
) -> Pulled:
    """Download what kmidi knows of a repository into a folder, all of it or nothing.

    Args:
        repository: `USER/NAME`.
        out: folder to make; its parents are made too.
        revision: branch, tag or commit; None: the newest.
        force: replace `out` if it is there, unless a training run lives in it.
        check: a further look at what was read, before it takes its place.

    Raises:
        KmidiError: when the repository or network is not to be had, a file is not what the server
            said, not what kmidi reads, or `out` is there already.
    """
    _check_out(out, force)
    commit, listed = _listed(repository, revision)
    wanted = [file for file in listed if is_shared(file.name)]
    if not any(file.name.endswith(".safetensors") for file in wanted):
        raise KmidiError(f"{repository} holds no checkpoint of kmidi ({checkpoint.BEST}).")
    with _workshop(out) as place:
        _check_sizes(wanted, place)
        for file in wanted:
            _download(repository, file, commit, place)
        shutil.rmtree(place / ".cache", ignore_errors=True)
        parts = read_parts(place)
        check_configs(place, parts)
        check(parts)
        parts = [replace(part, path=out / part.path.relative_to(place)) for part in parts]
        origin = {
            "repository": repository,
            "revision": commit,
            "asked_for": revision,
            "files": {file.name: file.sha256 or _sha256(place / file.name) for file in wanted},
        }
        (place / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
        _put(place, out)
    left_out = sorted(file.name for file in listed if not is_shared(file.name))
    return Pulled(commit, parts, left_out)


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise KmidiError(
            "sharing needs huggingface_hub, which is not installed: pip install 'kmidi-mlx[hub]'."
        ) from None
    # its warnings repeat addresses that may be signed
    library: Any = huggingface_hub
    library.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    return library


@contextmanager
def _asking(repository: str) -> Iterator[None]:
    """Turn what the library raises into a sentence that repeats nothing of it."""
    library = _library()
    errors = library.errors
    endpoint = library.constants.ENDPOINT
    try:
        yield
    except KmidiError:
        raise
    except errors.OfflineModeIsEnabled:
        raise KmidiError("HF_HUB_OFFLINE is set; unset it to reach the hub.") from None
    except errors.GatedRepoError:
        raise KmidiError(
            f"{repository} asks for an agreement first; give it on its page, then log in with "
            "`hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise KmidiError(f"{repository} has no such revision.") from None
    except errors.RepositoryNotFoundError:
        raise KmidiError(
            f"{repository} is not there, or private; check the name, or log in with "
            "`hf auth login`."
        ) from None
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise KmidiError(
                f"cannot reach {endpoint}, or what it points to; is there a network?"
            ) from None
        raise KmidiError(f"a file of {repository} is gone; try again.") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        advice = "; does your token allow it?" if status in (401, 403) else "; try again later."
        raise KmidiError(f"{endpoint} answered {status} about {repository}{advice}") from None
    except Exception as error:
        cause = error.__cause__
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore"):
            raise KmidiError(
                f"cannot reach {endpoint}, or what it points to ({type(error).__name__}); is there "
                "a network?"
            ) from None
        if isinstance(error, OSError) and error.errno is not None:
            raise KmidiError(f"cannot write what comes: {system_reason(error)}.") from None
        if isinstance(error, OSError | RuntimeError | ValueError):
            # the library's own complaints, such as a file of another size than announced
            kind = type(cause or error).__name__
            raise KmidiError(
                f"the exchange with {endpoint} about {repository} broke off ({kind}); try again."
            ) from None
        raise


def _listed(repository: str, revision: str | None) -> tuple[str, list[RemoteFile]]:
    """Return the commit that a revision is, and its files."""
    with _asking(repository):
        info = (
            _library()
            .HfApi()
            .model_info(repository, revision=revision, files_metadata=True, timeout=_ANSWER_SECONDS)
        )
        files = [
            RemoteFile(
                str(item.rfilename),
                int(item.size if item.size is not None else -1),
                item.lfs.sha256 if item.lfs is not None else None,
                item.blob_id,
            )
            for item in info.siblings or ()
        ]
    if not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)):
        raise KmidiError(f"the server names no commit of {repository}.")
    return str(info.sha), files


def _check_sizes(files: Sequence[RemoteFile], place: Path) -> None:
    for file in files:
        if not 0 <= file.size <= _LARGEST[Path(file.name).suffix]:
            raise KmidiError(f"{file.name} is said to have {file.size:,} bytes; that cannot be.")
    total = sum(file.size for file in files)
    free = shutil.disk_usage(place).free
    if total > free:
        raise KmidiError(
            f"{total / 1e9:.1f} GB are to come, and {free / 1e9:.1f} GB are free in {place.parent}."
        )


def _download(repository: str, file: RemoteFile, commit: str, place: Path) -> None:
    """Download a file into its place below a folder and compare it with what was said of it."""
    library = _library()
    wrong = KmidiError(
        f"{file.name} of {repository} is not the file that the server names; try again."
    )
    with _asking(repository):
        # before it fills a disk
        address = library.hf_hub_url(repository, file.name, revision=commit)
        if library.get_hf_file_metadata(address).size != file.size:
            raise wrong
        made = Path(
            library.hf_hub_download(repository, file.name, revision=commit, local_dir=place)
        )
    # `file.name` is one of ours, so this holds unless the library goes astray
    if made.resolve() != (place / file.name).resolve() or made.is_symlink():
        raise KmidiError(f"{file.name} of {repository} came to another place.")
    size = made.stat().st_size
    good = size == file.size
    if good and file.sha256 is not None:
        good = _sha256(made) == file.sha256
    elif good and file.blob is not None:
        good = _blob_id(made) == file.blob
    if not good:
        raise wrong


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blob_id(path: Path) -> str:
    """Return the id that Git gives a file."""
    data = path.read_bytes()
    head = f"blob {len(data)}\0".encode()
    return hashlib.sha1(head + data, usedforsecurity=False).hexdigest()


def _check_out(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise KmidiError(f"{out} is a file; give another --out.")
    if not force:
        raise KmidiError(f"{out} is there already; give another --out, or --force to replace it.")
    if (out / checkpoint.LAST).exists() or not (
        (out / checkpoint.BEST).exists() or (out / ORIGIN).exists()
    ):
        raise KmidiError(
            f"{out} holds more than a pulled checkpoint, and --force would lose it; give another "
            "--out."
        )


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out`; it is gone afterwards, and those of killed pulls too."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for leftover in out.parent.glob(f"{_PULLING}*"):
            with (leftover / checkpoint.LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
    except BlockingIOError:
        pass  # another pull is at work there
    except OSError as error:
        raise KmidiError(f"cannot write into {out.parent}: {system_reason(error)}.") from error
    place = out.parent / f"{_PULLING}{secrets.token_hex(6)}"
    try:
        place.mkdir()
        with (place / checkpoint.LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield place
    except OSError as error:
        raise KmidiError(f"cannot write into {out.parent}: {system_reason(error)}.") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _put(place: Path, out: Path) -> None:
    """Give a finished folder its name; what had the name before is there until then."""
    (place / checkpoint.LOCK).unlink(missing_ok=True)
    old = place.with_name(f"{place.name}-old")
    if out.exists():
        out.rename(old)
    try:
        place.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
