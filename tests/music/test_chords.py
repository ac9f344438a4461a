from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music import chords
from kmidi_mlx.music.chords import ChordSegments, parse_chord, parse_key

SHIFTS = st.integers(-50, 50)


def test_names_parse_back_for_every_id() -> None:
    names = [chords.chord_name(chord) for chord in range(chords.CHORD_COUNT)]
    assert len(set(names)) == chords.CHORD_COUNT == 110
    assert [parse_chord(name) for name in names] == list(range(chords.CHORD_COUNT))
    keys = [chords.key_name(key) for key in range(chords.KEY_COUNT)]
    assert len(set(keys)) == chords.KEY_COUNT == 25
    assert [parse_key(name) for name in keys] == list(range(chords.KEY_COUNT))


@settings(max_examples=100)
@given(st.integers(0, chords.CHORD_COUNT - 1), st.integers(0, 24), SHIFTS, SHIFTS)
def test_transposition_is_a_group_action(chord: int, key: int, up: int, more: int) -> None:
    for move, symbol in ((chords.transpose_chord, chord), (chords.transpose_key, key)):
        assert move(symbol, 0) == symbol
        assert move(move(symbol, up), more) == move(symbol, up + more)
        assert move(move(symbol, up), -up) == symbol
        assert move(symbol, 12) == symbol
    assert (chords.transpose_chord(chord, 5) == chord) == (chord < 2)
    assert (chords.transpose_key(key, 5) == key) == (key == 0)


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("C:min7/b3", "C:min7"),
        ("B:maj", "B:maj"),
        ("Cb:maj", "B:maj"),
        ("E#:min", "F:min"),
        ("Dbb:7", "C:7"),
        ("Am", "A:min"),
        ("C", "C:maj"),
        ("F#m7", "F#:min7"),
        ("Gsus4", "G:sus4"),
        ("Ab:sus4(b7)", "Ab:sus4"),
        ("A:sus2", "A:sus4"),
        ("D:maj7/7", "D:maj7"),
        ("G:7/b7", "G:7"),
        ("C/E", "C:maj"),
        ("Am/G", "A:min"),
        ("C6/9", "C:maj"),
        ("C:maj(9)/3", "C:maj"),
        ("Bbmaj7", "Bb:maj7"),
        ("Bm7b5", "B:hdim7"),
        ("Bø7/F", "B:hdim7"),
        ("Bbdim7", "Bb:dim"),
        ("B♭m", "Bb:min"),
        ("F:minmaj7", "F:min"),
        ("C+", "C:aug"),
        ("N", "N"),
        (" N.C. ", "N"),
        ("X", "X"),
    ],
)
def test_symbols_of_both_styles_are_read(symbol: str, name: str) -> None:
    assert chords.chord_name(parse_chord(symbol)) == name


@pytest.mark.parametrize(
    "symbol", ["", "H:maj", "C:majestic", "c:maj", "Cmaj7/", "C:maj/x", "C:()"]
)
def test_other_symbols_are_refused(symbol: str) -> None:
    with pytest.raises(KmidiError, match="not understood"):
        parse_chord(symbol)


def test_keys_are_read() -> None:
    assert parse_key("C:maj") == 1
    assert parse_key("Gb:maj") == parse_key("F# major") == 7
    assert parse_key("A:min") == parse_key("Am") == parse_key("A minor") == 22
    assert parse_key("X") == 0
    for wrong in ("", "H:maj", "C:dorian"):
        with pytest.raises(KmidiError, match="not understood"):
            parse_key(wrong)


@pytest.mark.parametrize(
    "call", [chords.chord_name, chords.key_name, lambda i: chords.transpose_chord(i, 1)]
)
def test_ids_out_of_range_are_refused(call: object) -> None:
    for wrong in (-1, 110):
        with pytest.raises(KmidiError, match="out of range"):
            call(wrong)  # type: ignore[operator]


def test_chord_file_and_lookup(tmp_path: Path) -> None:
    path = tmp_path / "chord_midi.txt"
    path.write_text("0.5\t1.5\tN\n1.5\t3.0\tB:maj\n4.0\t5.0\tEb:min7/b3\n\n")
    segments = chords.read_chords(path)
    assert len(segments) == 3
    times = [0.0, 0.5, 1.49, 1.5, 2.9, 3.5, 4.0, 5.0, 99.0]
    names = [chords.chord_name(int(chord)) for chord in segments.at(times)]
    assert names == ["X", "N", "N", "B:maj", "B:maj", "X", "Eb:min7", "X", "X"]
    moved = segments.transpose(2)
    assert [chords.chord_name(int(c)) for c in moved.chord] == ["N", "C#:maj", "F:min7"]
    np.testing.assert_array_equal(moved.start_seconds, segments.start_seconds)


def test_no_chords_at_all(tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("\n")
    segments = chords.read_chords(path)
    assert len(segments) == len(segments.transpose(1)) == 0
    assert segments.at([0.0, 1.0]).tolist() == [0, 0]
    assert chords.read_key(path) == 0


def test_key_file_gives_the_key_that_holds_longest(tmp_path: Path) -> None:
    path = tmp_path / "key_audio.txt"
    path.write_text("0.0 30.0 Gb:maj\n30.0 70.0 A:min\n70.0 95.5 Gb:maj\n")
    assert chords.read_key(path) == parse_key("Gb:maj")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1 C:maj\n1 2 Q:maj\n", r"chords.txt, row 2: chord symbol 'Q:maj'"),
        ("0 1\n", r"chords.txt, row 1: expected start and end"),
        ("0 one C:maj\n", r"row 1: expected start and end"),
        ("2 1 C:maj\n", r"row 1: 2 to 1 s is not"),
        ("0 nan C:maj\n", r"row 1: 0 to nan s is not"),
        ("0 2 C:maj\n1 3 D:maj\n", r"row 2: the chord starts at 1 s, before"),
    ],
)
def test_wrong_chord_files_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "chords.txt"
    path.write_text(text)
    with pytest.raises(KmidiError, match=message):
        chords.read_chords(path)


def test_missing_and_wrong_key_files(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="cannot read annotation file"):
        chords.read_key(tmp_path / "absent.txt")
    path = tmp_path / "key.txt"
    path.write_text("0 1 C:maj\n1 2 C:dorian\n")
    with pytest.raises(KmidiError, match=r"key.txt, row 2: key 'C:dorian'"):
        chords.read_key(path)


def test_rows_of_a_manifest() -> None:
    segments = ChordSegments.from_rows([[0, 1.5, "C:min7"], [1.5, 2, "G"]])
    assert segments.chord.tolist() == [parse_chord("C:min7"), parse_chord("G:maj")]
    with pytest.raises(KmidiError, match="symbol has to be text"):
        ChordSegments.from_rows([[0, 1, 7]])
