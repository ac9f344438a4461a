from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from hub_double import COMMIT, HubDouble, Repository
from relabelling import relabel

from kmidi_mlx import checkpoint, push
from kmidi_mlx.command import run

Captured = pytest.CaptureFixture[str]
TOKEN = "hf_averysecrettoken"
# of the library's own use of its HTTP client
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def _logged_in(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def complaint(capsys: Captured, *arguments: object) -> str:
    assert run(push.main, [str(item) for item in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert TOKEN not in captured.err
    return captured.err.splitlines()[-1].removeprefix("kmidi push: ")


@pytest.mark.usefixtures("_logged_in")
def test_a_push_sends_weights_configuration_adapters_and_card_alone(
    with_adapter: Path, hub: HubDouble, capsys: Captured
) -> None:
    (with_adapter / checkpoint.BEST_TORCH).write_bytes(b"a pickle")
    (with_adapter / "secret.txt").write_text("mine")
    assert run(push.main, [str(with_adapter), "user/tiny"]) == 0
    captured = capsys.readouterr()
    assert TOKEN not in captured.out + captured.err
    assert f"pushed: {hub.endpoint}/user/tiny/commit/{COMMIT}" in captured.out
    assert "get it: kmidi pull user/tiny" in captured.out
    kept = hub.repositories["user/tiny"]
    assert set(kept.files) == {
        "README.md", "best.safetensors", "config.yaml",
        "adapters/mine/adapter.safetensors", "adapters/mine/adapter_config.yaml",
    }  # fmt: skip
    assert kept.messages == ["kmidi push midi_generator"]
    assert not kept.private
    assert {given for _, path, given in hub.requests if "/commit/" in path} == {f"Bearer {TOKEN}"}
    assert not (with_adapter / "README.md").exists()


@pytest.mark.usefixtures("_logged_in")
def test_weights_keep_their_bits_and_lose_the_paths_of_the_machine(
    with_adapter: Path, hub: HubDouble, tmp_path: Path
) -> None:
    assert run(push.main, [str(with_adapter), "user/tiny"]) == 0
    sent = hub.repositories["user/tiny"].files
    for name in ("best.safetensors", "adapters/mine/adapter.safetensors"):
        received = tmp_path / "received.safetensors"
        received.write_bytes(sent[name])
        arrays, metadata = checkpoint.load_arrays(received)
        before, known = checkpoint.load_arrays(with_adapter / name)
        assert {n: a.tobytes() for n, a in arrays.items()} == {
            n: a.tobytes() for n, a in before.items()
        }
        assert known["config"]["data"]["path"].startswith("/")
        assert metadata["config"]["data"]["path"] == "data"
        assert metadata["config"]["model"] == known["config"]["model"]
        assert metadata["metric"] == known["metric"]
    assert not [name for name, data in sent.items() if str(tmp_path.parent).encode() in data]
    assert b"/" not in sent["config.yaml"].split(b"path:")[1].splitlines()[0].split(b"#")[0]


@pytest.mark.usefixtures("_logged_in")
def test_private_branch_and_message_are_passed_on(model: Path, hub: HubDouble) -> None:
    words = ["--private", "--revision", "trial", "--message", "for you", "--licence", "CC-BY-4.0"]
    assert run(push.main, [str(model), "user/tiny", *words]) == 0
    kept = hub.repositories["user/tiny"]
    assert kept.private
    assert kept.files == {}
    assert set(kept.branches["trial"]) == {"README.md", "best.safetensors", "config.yaml"}
    assert kept.messages == ["for you"]
    card = kept.branches["trial"]["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"


@pytest.mark.usefixtures("_logged_in")
def test_what_is_meant_to_be_private_is_not_sent_to_a_public_place(
    model: Path, hub: HubDouble, capsys: Captured
) -> None:
    hub.repositories["user/tiny"] = Repository()
    said = complaint(capsys, model, "user/tiny", "--private")
    assert "is there and public" in said
    assert hub.repositories["user/tiny"].files == {}


def test_a_dry_run_needs_no_network_and_no_login(
    with_adapter: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert run(push.main, [str(with_adapter), "user/tiny", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "adapters/mine/adapter.safetensors" in out
    assert "nothing was sent" in out
    assert "practice music" in out
    card = (with_adapter / "README.md").read_text()
    assert "kmidi pull user/tiny" in card
    assert run(push.main, [str(with_adapter), "user/tiny", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["licence"] == "MIT"  # written once more, over ours
    (with_adapter / "README.md").write_text("my own words")
    assert "not a card that kmidi wrote" in complaint(capsys, with_adapter, "u/t", "--dry-run")
    assert (with_adapter / "README.md").read_text() == "my own words"


def test_data_of_unknown_licence_are_not_shared_by_oversight(
    with_adapter: Path, capsys: Captured
) -> None:
    for licences in ([], None, [" "]):
        relabel(with_adapter / "adapters/mine/adapter.safetensors", data_licences=licences)
        said = complaint(capsys, with_adapter, "user/tiny")
        assert "licences the data of mine were" in said
        assert "--licence" in said
        # what would go can be seen all the same, with nothing claimed
        assert run(push.main, [str(with_adapter), "user/tiny", "--dry-run", "--json"]) == 0
        shown = capsys.readouterr()
        assert shown.err == f"warning: push will refuse this: {said}\n"
        assert json.loads(shown.out)["licence"] is None
        assert "adapters/mine/adapter.safetensors" in json.loads(shown.out)["files"]
    words = [str(with_adapter), "user/tiny", "--dry-run", "--licence", "My Own Terms 1.0"]
    assert run(push.main, words) == 0
    front = yaml.safe_load((with_adapter / "README.md").read_text().split("---")[1])
    assert front["license"] == "other"
    assert front["license_name"] == "my-own-terms-1.0"


def test_adapters_that_are_not_finished_stay_at_home(with_adapter: Path, capsys: Captured) -> None:
    adapters = with_adapter / checkpoint.ADAPTERS
    half, begun = adapters / "half", adapters / "begun"
    shutil.copytree(adapters / "mine", half)
    for folder in (half, begun):
        (folder / "last").mkdir(parents=True)
        (folder / checkpoint.LAST).write_text("state")

    def listed() -> tuple[set[str], str]:
        capsys.readouterr()
        assert run(push.main, [str(with_adapter), "user/tiny", "--dry-run", "--json"]) == 0
        said = capsys.readouterr()
        files = json.loads(said.out)["files"]
        return {name.split("/")[1] for name in files if "/" in name}, said.err

    names, said = listed()
    assert names == {"mine"}
    assert "note: left out: the adapter half, whose fine-tuning has not come to its end" in said
    assert "note: left out: the adapter begun," in said
    # its end makes it one like the others
    (half / checkpoint.GAINED).write_text("{}")
    names, said = listed()
    assert names == {"mine", "half"}
    assert "half" not in said


def test_pickles_and_empty_folders_are_refused(
    model: Path, tmp_path: Path, capsys: Captured
) -> None:
    (model / "best.pt").write_bytes(b"a pickle")
    assert "those are not shared" in complaint(capsys, model / "best.pt", "u/t", "--dry-run")
    (model / "best.safetensors").unlink()
    assert "kmidi convert" in complaint(capsys, model, "u/t", "--dry-run")
    assert "holds no checkpoint" in complaint(capsys, tmp_path, "u/t", "--dry-run")


def test_damaged_weights_are_refused(model: Path, capsys: Captured) -> None:
    file = model / "best.safetensors"
    arrays, known = checkpoint.load_arrays(file)
    name = next(iter(arrays))
    arrays[name] = arrays[name].copy()
    arrays[name].flat[0] = float("nan")
    checkpoint.save_arrays(file, arrays, known)
    assert "NaN" in complaint(capsys, model, "u/t", "--dry-run")
    file.write_bytes(file.read_bytes()[:-100])
    assert "not a readable safetensors file" in complaint(capsys, model, "u/t", "--dry-run")


@pytest.mark.parametrize(
    "name", ["tiny", "a/b/c", "../x/y", "a b/c", "-/x", "user/../../etc", "a/"]
)
def test_names_of_repositories(model: Path, capsys: Captured, name: str) -> None:
    assert "give USER/NAME" in complaint(capsys, "--", model, name)


def test_without_a_login_nothing_is_sent(model: Path, hub: HubDouble, capsys: Captured) -> None:
    assert "needs a login" in complaint(capsys, model, "user/tiny")
    assert hub.requests == []


@pytest.mark.usefixtures("_logged_in")
@pytest.mark.parametrize(("status", "words"), [(403, "token"), (500, "try again later")])
def test_a_server_that_refuses_is_one_sentence(
    model: Path, hub: HubDouble, capsys: Captured, status: int, words: str
) -> None:
    hub.failing = status
    said = complaint(capsys, model, "user/tiny")
    assert f"answered {status}" in said
    assert words in said


def test_a_library_that_is_missing_is_named(
    model: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert "pip install 'kmidi-mlx[hub]'" in complaint(capsys, model, "user/tiny")
