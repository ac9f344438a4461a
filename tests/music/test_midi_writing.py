from __future__ import annotations

from pathlib import Path

import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.events import decode, encode
from kmidi_mlx.music.midi_file import read_midi, write_midi
from kmidi_mlx.music.notes import Notes

PIECES = Path(__file__).parents[2] / "kmidi_mlx" / "assets" / "pop909"

grid_notes = st.lists(
    st.tuples(st.integers(0, 127), st.integers(1, 127), st.integers(0, 5000), st.integers(1, 300)),
    max_size=20,
    unique_by=lambda row: row[0],
).map(
    lambda table: Notes.build(
        [row[0] for row in table],
        [row[1] for row in table],
        [row[2] / 100 for row in table],
        [(row[2] + row[3]) / 100 for row in table],
    )
)


@settings(max_examples=60, deadline=None)
@given(notes=grid_notes, beats=st.floats(4, 1000))
def test_grid_notes_written_and_read_back_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, notes: Notes, beats: float
) -> None:
    path = tmp_path_factory.mktemp("written") / "piece.mid"
    write_midi(notes, path)
    assert read_midi(path).equals(notes)
    write_midi(notes, path, tempo=beats)
    assert encode(read_midi(path)).tolist() == encode(notes).tolist()


def test_a_real_piece_written_and_read_back_is_the_same(tmp_path: Path) -> None:
    notes = decode(encode(read_midi(PIECES / "786.mid")))
    write_midi(notes, tmp_path / "piece.mid")
    assert len(notes) > 1000
    assert read_midi(tmp_path / "piece.mid").equals(notes)


def test_what_is_written_is_a_piano_at_the_tempo_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "piece.mid"
    write_midi(Notes.build([60], [64], [0.5], [1.0]), path, tempo=90)
    midi = mido.MidiFile(path)
    assert midi.type == 0
    assert [message.type for message in midi.tracks[0]] == [
        *("set_tempo", "program_change", "note_on", "note_off", "end_of_track")
    ]
    assert mido.tempo2bpm(midi.tracks[0][0].tempo) == pytest.approx(90, rel=1e-3)
    assert midi.length == pytest.approx(1.0)


def test_a_pitch_that_overlaps_itself_is_written_as_it_is_encoded(tmp_path: Path) -> None:
    notes = Notes.build([60, 60, 60], [10, 90, 50], [0, 0, 0.5], [0.2, 0.9, 0.7])
    write_midi(notes, tmp_path / "piece.mid")
    expected = Notes.build([60, 60], [90, 50], [0.0, 0.5], [0.5, 0.7])
    assert read_midi(tmp_path / "piece.mid").equals(expected)


def test_nothing_is_written_as_a_silent_file(tmp_path: Path) -> None:
    write_midi(Notes.empty(), tmp_path / "silence.mid")
    assert len(read_midi(tmp_path / "silence.mid")) == 0


def test_writing_replaces_the_file_whole_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "piece.mid"
    path.write_bytes(b"old")
    with pytest.raises(KmidiError, match="tempo is 3"):
        write_midi(Notes.empty(), path, tempo=3)
    assert path.read_bytes() == b"old"
    write_midi(Notes.empty(), path)
    assert path.read_bytes()[:4] == b"MThd"
    assert [entry.name for entry in tmp_path.iterdir()] == ["piece.mid"]
    with pytest.raises(KmidiError, match="missing"):
        write_midi(Notes.empty(), tmp_path / "missing" / "piece.mid")
