"""Adapters by name: what is asked for is had, or nothing changes; nobody reaches other files."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_adapters import save_adapter

from kmidi_mlx.adapter_file import Adapter
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.styles import Styles


class Judge:
    """Counts what it is asked about, and finds that one does not fit."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, adapter: Adapter) -> None:
        self.asked.append(adapter.name)
        if adapter.name == "wide":
            raise KmidiError(f"{adapter.path} does not fit the model: too wide.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("mine", "yours", "wide", "über 1")):
        save_adapter(tmp_path, name, seed)
    save_adapter(tmp_path / "elsewhere", "mine")
    return tmp_path


def scales(styles: Styles) -> dict[str, float]:
    """What is in force, as it is told."""
    told = {row["name"]: row["scale"] for row in styles.rows() if row["scale"]}
    assert told == {adapter.name: scale for adapter, scale in styles.wanted.adapters}
    return told


def test_each_has_its_scale_and_others_stay(folder: Path) -> None:
    judge = Judge()
    styles = Styles(folder, judge)
    assert styles.rows() == [
        {"name": name, "scale": 0.0} for name in ("mine", "wide", "yours", "über 1")
    ]
    styles.load("mine", 0.7)
    styles.load("yours")
    styles.load("über 1", -0.5)
    assert scales(styles) == {"mine": 0.7, "yours": 1.0, "über 1": -0.5}
    styles.load("mine", 0.2)
    assert scales(styles) == {"mine": 0.2, "yours": 1.0, "über 1": -0.5}
    styles.load("yours", 0.0)
    styles.load("wide", 0)  # was never on
    assert scales(styles) == {"mine": 0.2, "über 1": -0.5}
    # another scale needs no reading
    assert judge.asked == ["mine", "yours", "über 1"]
    version = styles.wanted.version
    styles.load("mine", 0.2)
    assert styles.wanted.version == version
    styles.load("yours", 1.5, alone=True)
    assert scales(styles) == {"yours": 1.5}
    assert styles.wanted.version == version + 1
    styles.load(None)
    assert scales(styles) == {}
    styles.load("mine")
    styles.load("")
    assert scales(styles) == {}


@pytest.mark.parametrize(
    ("name", "scale", "sentence"),
    [
        ("../elsewhere/adapters/mine", 1.0, "there is no adapter called"),
        ("elsewhere/adapters/mine", 1.0, "there is no adapter called"),
        ("mine/", 1.0, "did you mean mine"),
        ("mine/adapter.safetensors", 1.0, "there is no adapter called"),
        ("..", 1.0, "there are mine, other, torn"),
        (".", 1.0, "there is no adapter called '.'"),
        ("\\mine", 1.0, "did you mean mine"),
        ("mine\0", 1.0, "did you mean mine"),
        ("mine:0.5", 1.0, "did you mean mine"),
        ("x" * 4096, 1.0, "there is no adapter called"),
        ("/etc/passwd", 0.0, "there is no adapter called '/etc/passwd'"),
        ("mine", 4.5, "from -4 to 4"),
        ("mine", float("nan"), "from -4 to 4"),
        ("wide", 1.0, "the adapter 'wide' does not fit the model: too wide"),
        ("other", 1.0, "is for 'spectocloud'"),
        ("torn", 1.0, "the adapter 'torn'"),
    ],
)
def test_what_cannot_be_had_changes_nothing(
    folder: Path, name: str, scale: float, sentence: str
) -> None:
    styles = Styles(folder, Judge())
    styles.load("yours")
    before = styles.wanted
    save_adapter(folder, "other", model="spectocloud")
    torn = save_adapter(folder, "torn")
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(KmidiError) as caught:
        styles.load(name, scale, alone=True)
    assert sentence in str(caught.value)
    assert str(folder) not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert styles.wanted is before


def test_new_ones_are_seen_and_changed_ones_read_again(folder: Path) -> None:
    judge = Judge()
    styles = Styles(folder, judge)
    save_adapter(folder, "later")
    assert "later" not in {row["name"] for row in styles.rows()}
    styles.load("later")  # whoever knows its name need not look first
    path = save_adapter(folder, "newest")
    assert "newest" in {row["name"] for row in styles.look()}
    styles.load("newest")
    first = styles.wanted
    save_adapter(folder, "newest", seed=9)
    styles.load("newest")
    assert styles.wanted.version == first.version + 1
    assert judge.asked == ["later", "newest", "newest"]
    # one whose file is gone still plays, and can be taken off
    path.unlink()
    styles.load("newest", 0.5)
    assert scales(styles)["newest"] == 0.5
    styles.load("newest", 0.0)
    assert "newest" not in {row["name"] for row in styles.look()}
    with pytest.raises(KmidiError, match="there is no adapter called 'newest'"):
        styles.load("newest")


def test_at_the_start_paths_are_names_too(folder: Path) -> None:
    styles = Styles(folder, Judge())
    styles.choose(["yours:0.5", str(folder / "elsewhere" / "adapters" / "mine")])
    assert scales(styles) == {"yours": 0.5, "mine": 1.0}
    # which is the one that is meant from then on
    (held,) = [adapter for adapter, _ in styles.wanted.adapters if adapter.name == "mine"]
    styles.load("mine", 2.0)
    assert any(adapter is held for adapter, _ in styles.wanted.adapters)
    with pytest.raises(KmidiError, match="'mine' is named twice"):
        styles.choose(["mine", "mine:0.5"])
    with pytest.raises(KmidiError, match="no adapter is called 'his'"):
        styles.choose(["his"])


def test_too_many_do_not_add_up(tmp_path: Path) -> None:
    for number in range(9):
        save_adapter(tmp_path, f"style {number}", rank=1)
    styles = Styles(tmp_path, Judge())
    for number in range(8):
        styles.load(f"style {number}")
    with pytest.raises(KmidiError, match="9 adapters are too many"):
        styles.load("style 8")
    assert len(styles.wanted.adapters) == 8


def test_where_there_are_none_it_says_who_teaches_them(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="`kmidi finetune` teaches one"):
        Styles(tmp_path, Judge()).load("mine")
