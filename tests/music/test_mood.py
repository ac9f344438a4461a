from __future__ import annotations

import datetime
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music import mood as md
from kmidi_mlx.music import mood_fit
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.music.mood import MOOD_FEATURES, STATISTICS, MoodModel
from kmidi_mlx.music.mood_fit import RatedPieces
from kmidi_mlx.music.notes import Notes

COLUMN = {name: k for k, name in enumerate(STATISTICS)}
FEATURE = {name: k for k, name in enumerate(MOOD_FEATURES)}


def random_piece(seed: int, count: int, seconds: float) -> Notes:
    rng = np.random.default_rng(seed)
    # On a 10 ms grid, off its middle, so that no onset lies on an edge of a cell.
    onset = np.round(rng.uniform(0, seconds, count), 2) + 0.005
    return Notes.build(
        rng.integers(0, 128, count),
        rng.integers(1, 128, count),
        onset,
        onset + rng.choice([0.01, 0.2, 1.5, 6.0], count),
    )


pieces = st.builds(
    random_piece, st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([0.5, 7.0, 60.0])
)


def arrangement(minor: bool, beat_seconds: float, velocity: int, length: float = 0.9) -> Notes:
    """A cadence over and over: bass, chord and a velocity that swings a little."""
    third = 3 if minor else 4
    chords = [(0, third, 7), (5, 5 + third, 12), (7, 11, 14), (0, third, 7)]
    rows = []
    for step in range(int(40 / beat_seconds)):
        chord = chords[step // 4 % 4]
        for pitch in (48 + chord[0] - 12, *(60 + c for c in chord)):
            swing = velocity + (10 if step % 2 else -10)
            rows.append((pitch, swing, step * beat_seconds, (step + length) * beat_seconds))
    return Notes.build(*zip(*rows, strict=True))


def reference_statistics(notes: Notes, cell_seconds: float) -> NDArray[np.float64]:
    """Note by note, with silence counted in steps of a millisecond."""
    end = notes.duration_seconds
    out = np.zeros((max(1, math.ceil(end / cell_seconds)), len(STATISTICS)))
    for k in range(len(out)):
        out[k, COLUMN["seconds"]] = min((k + 1) * cell_seconds, end) - k * cell_seconds
    groups: list[list[int]] = []
    for k in range(len(notes)):
        onset = notes.onset_seconds[k]
        if k and onset - notes.onset_seconds[k - 1] < md.CHORD_GAP_SECONDS:
            groups[-1].append(k)
        else:
            groups.append([k])
        pitch, velocity = int(notes.pitch[k]), int(notes.velocity[k])
        length = min(max(notes.offset_seconds[k] - onset, 0.03), 2.0)
        row = out[int(onset // cell_seconds)]
        row[COLUMN["notes"]] += 1
        row[COLUMN["pitch"]] += pitch
        row[COLUMN["low_notes"]] += pitch < 48
        row[COLUMN["log_duration"]] += math.log(length / 0.03)
        row[COLUMN["velocity"]] += velocity
        row[COLUMN["velocity^2"]] += velocity**2
        row[COLUMN[f"pitch_class_{pitch % 12}"]] += min(length, 1.0)
    starts = [float(notes.onset_seconds[group[0]]) for group in groups]
    for group, start in zip(groups, starts, strict=True):
        row = out[int(start // cell_seconds)]
        row[COLUMN["onsets"]] += 1
        row[COLUMN[f"bass_class_{min(int(notes.pitch[k]) for k in group) % 12}"]] += 1
    edges = np.array([-math.inf, *starts])
    for step in range(round(end * 1000)):
        time = (step + 0.5) / 1000
        if time - edges[np.searchsorted(edges, time) - 1] > 1.0:
            out[int(time // cell_seconds), COLUMN["silent_seconds"]] += 0.001
    return out


@settings(max_examples=25, deadline=None)
@given(pieces)
def test_cells_equal_a_slow_reference(notes: Notes) -> None:
    np.testing.assert_allclose(
        md.cell_statistics(notes), reference_statistics(notes, 2.0), atol=3e-3, rtol=1e-9
    )


@settings(max_examples=50)
@given(pieces, st.sampled_from([2, 3, 100]))
def test_cells_add_up_to_longer_cells(notes: Notes, factor: int) -> None:
    small, large = md.cell_statistics(notes, 0.5), md.cell_statistics(notes, 0.5 * factor)
    padded = np.zeros((len(large) * factor, len(STATISTICS)))
    padded[: len(small)] = small
    summed = padded.reshape(len(large), factor, -1).sum(axis=1)
    np.testing.assert_allclose(summed, large, atol=1e-9)
    assert (large >= 0.0).all()
    assert large[:, COLUMN["notes"]].sum() == len(notes)


@settings(max_examples=50)
@given(pieces, st.integers(1, 12), st.integers(1, 5))
def test_windows_are_sums_of_their_cells(notes: Notes, size: int, hop: int) -> None:
    cells = md.cell_statistics(notes)
    windows = md.window_sums(cells, size, hop)
    starts = range(0, max(1, len(cells) - size + 1), hop)
    assert len(windows) == len(starts)
    for row, start in zip(windows, starts, strict=True):
        np.testing.assert_allclose(row, cells[start : start + size].sum(axis=0), atol=1e-8)


@settings(max_examples=50)
@given(pieces)
def test_estimates_are_finite_and_in_range(notes: Notes) -> None:
    curve = md.mood_curve(notes)
    assert curve.shape == (max(1, math.ceil(notes.duration_seconds / 2) - 9), 2)
    assert np.isfinite(curve).all()
    assert np.abs(curve).max() <= 1.0
    assert np.abs(md.mood_curve(notes, scale="rated")).max() <= 1.0


def test_curve_row_is_the_estimate_of_its_twenty_seconds() -> None:
    notes = random_piece(3, 200, 90.0)
    cells = md.cell_statistics(notes)
    curve = md.mood_curve(notes, window_seconds=20.0, hop_seconds=4.0)
    expected = md.estimate(cells[6:16].sum(axis=0, keepdims=True))
    np.testing.assert_allclose(curve[3], expected[0], atol=1e-9)
    whole = md.mood_curve(notes, window_seconds=1000.0, scale="rated")
    assert md.mood(notes, scale="rated") == pytest.approx(tuple(whole[0]))


def test_fast_major_loud_against_slow_minor_soft() -> None:
    bright = arrangement(minor=False, beat_seconds=0.25, velocity=100)
    dark = arrangement(minor=True, beat_seconds=1.0, velocity=45)
    for scale in ("rated", "steering"):
        valence, arousal = md.mood(bright, scale)  # type: ignore[arg-type]
        low_valence, low_arousal = md.mood(dark, scale)  # type: ignore[arg-type]
        assert valence > low_valence + 0.1
        assert arousal > low_arousal + 0.1


def test_single_cues_move_their_axis() -> None:
    base = md.mood(arrangement(False, 0.5, 80))
    assert md.mood(arrangement(True, 0.5, 80))[0] < base[0] - 0.3
    assert md.mood(arrangement(False, 0.25, 80))[1] > base[1] + 0.2
    assert md.mood(arrangement(False, 0.5, 110))[1] > base[1] + 0.1
    assert md.mood(arrangement(False, 0.5, 110))[0] == pytest.approx(base[0])
    assert md.mood(arrangement(False, 0.5, 80, length=0.3))[1] > base[1] + 0.1


def test_one_constant_velocity_says_nothing() -> None:
    notes = arrangement(False, 0.5, 80)
    moods = [
        md.mood(
            Notes.build(notes.pitch, [v] * len(notes), notes.onset_seconds, notes.offset_seconds)
        )
        for v in (30, 80, 120)
    ]
    np.testing.assert_allclose(moods, [moods[0]] * 3, atol=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(-30, 30))
def test_tonal_features_do_not_move_with_transposition(seed: int, semitones: int) -> None:
    notes = random_piece(seed, 40, 20.0)
    low = Notes.build(
        notes.pitch % 40 + 40, notes.velocity, notes.onset_seconds, notes.offset_seconds
    )
    moved = Notes.build(
        low.pitch.astype(int) + semitones, low.velocity, low.onset_seconds, low.offset_seconds
    )
    before, after = (
        md.mood_features(md.cell_statistics(n).sum(axis=0)[None]) for n in (low, moved)
    )
    stays = [k for name, k in FEATURE.items() if name not in ("mean_pitch", "low_share")]
    np.testing.assert_allclose(after[0, stays], before[0, stays], atol=1e-9)
    assert after[0, FEATURE["mean_pitch"]] - before[0, FEATURE["mean_pitch"]] == pytest.approx(
        semitones
    )


def test_key_correlations_find_the_key() -> None:
    scale = np.zeros(12)
    scale[[0, 2, 4, 5, 7, 9, 11]] = 1
    scale[[0, 4, 7]] += 1
    for tonic in range(12):
        fit = md.key_correlations(np.roll(scale, tonic)[None])[0]
        assert fit.argmax() == tonic
        assert np.abs(fit).max() <= 1.0
    np.testing.assert_allclose(md.key_correlations(np.ones((1, 12))), 0.0, atol=1e-6)


def test_a_piece_is_found_to_be_in_its_key() -> None:
    for semitones in range(-3, 9):
        major = [60, 64, 67, 65, 69, 72, 67, 71, 74, 60, 64, 67]
        minor = [57, 60, 64, 62, 65, 69, 64, 68, 71, 57, 60, 64]
        for pitch, is_minor in ((major, False), (minor, True)):
            onset = np.repeat(np.arange(4.0), 3)
            notes = Notes.build([p + semitones for p in pitch], [70] * 12, onset, onset + 1)
            assert md.likely_key(notes) == ((pitch[0] + semitones) % 12, is_minor)
    assert md.likely_key(Notes.empty()) == (0, False)


def test_the_scales_convert_into_each_other() -> None:
    steering = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    np.testing.assert_allclose(md.to_steering(md.to_rated(steering)), steering, atol=1e-12)
    edge = md.to_rated([-md.STEERING_EDGE, md.STEERING_EDGE])
    model = md.load_model()
    np.testing.assert_allclose(edge, [model.steering_low[0], model.steering_high[1]])


def test_silence_is_neutral() -> None:
    assert md.mood(Notes.empty()) == (0.0, 0.0)
    assert md.mood_curve(Notes.empty()).shape == (0, 2)
    assert md.estimate(np.zeros((0, len(md.STATISTICS)))).shape == (0, 2)
    gap = Notes.build([60, 60], [64, 64], [0.0, 60.0], [1.0, 61.0])
    assert not md.mood_curve(gap)[5].any()
    assert md.mood_curve(gap)[0].any()


def test_wrong_arguments_are_refused() -> None:
    notes = random_piece(1, 10, 5.0)
    for wrong in (0.0, 3.0, -2.0, math.nan, math.inf):
        with pytest.raises(KmidiError, match="window_seconds"):
            md.mood_curve(notes, window_seconds=wrong)
    with pytest.raises(KmidiError, match="hop_seconds"):
        md.mood_curve(notes, hop_seconds=1.0)
    with pytest.raises(KmidiError, match="scale"):
        md.mood(notes, scale="loud")  # type: ignore[arg-type]
    with pytest.raises(KmidiError, match="shape"):
        md.estimate(np.zeros(len(STATISTICS)))
    with pytest.raises(KmidiError, match="cell_seconds"):
        md.cell_statistics(notes, 0.0)


def test_the_shipped_coefficients_agree_with_themselves() -> None:
    model = md.load_model()
    data = json.loads(md.COEFFICIENTS_PATH.read_text(encoding="utf-8"))
    assert model.weights.shape == (len(MOOD_FEATURES), 2)
    assert (model.sd > 0).all()
    assert model.weights[FEATURE["loudness"], 0] == 0.0
    assert model.weights[FEATURE["mode"], 0] > 0 < model.weights[FEATURE["loudness"], 1]
    # At the mean of all features stands the mean rating, but for the clipping of outliers.
    np.testing.assert_allclose(model.rated(model.mean[None])[0], [0.15, 0.04], atol=0.01)
    scores = data["cross_validation"]["piece"]
    assert scores["valence"]["r2"] >= 0.30
    assert scores["arousal"]["r2"] >= 0.55
    edge = md.STEERING_EDGE
    np.testing.assert_allclose(md.to_steering(model.steering_low), [-edge, -edge])
    np.testing.assert_allclose(md.to_steering(model.steering_high), [edge, edge])
    np.testing.assert_array_equal(md.to_steering([[9.0, -9.0]]), [[1.0, -1.0]])


def test_broken_coefficients_are_refused(tmp_path: Path) -> None:
    data = json.loads(md.COEFFICIENTS_PATH.read_text(encoding="utf-8"))
    path = tmp_path / "mood.json"
    with pytest.raises(KmidiError, match="cannot be read"):
        MoodModel.from_json(path)
    path.write_text("{")
    with pytest.raises(KmidiError, match="cannot be read"):
        MoodModel.from_json(path)
    data["features"][0]["name"] = "tempo"
    path.write_text(json.dumps(data))
    with pytest.raises(KmidiError, match="other features"):
        MoodModel.from_json(path)


def planted() -> tuple[RatedPieces, MoodModel]:
    """Pieces whose ratings follow known coefficients exactly."""
    rng = np.random.default_rng(5)
    statistics = [
        md.cell_statistics(
            arrangement(bool(rng.integers(2)), rng.uniform(0.2, 1.5), int(rng.integers(40, 110)))
        )
        + rng.uniform(0, 1.0, len(STATISTICS))
        for _ in range(60)
    ]
    rows = np.array([cells.sum(axis=0) for cells in statistics])
    features = md.mood_features(rows)
    weights = rng.uniform(-0.1, 0.1, (len(MOOD_FEATURES), 2))
    weights[FEATURE["loudness"], 0] = 0.0
    model = MoodModel(
        features.mean(axis=0),
        features.std(axis=0),
        weights,
        np.array([0.1, -0.2]),
        -np.ones(2),
        np.ones(2),
    )
    group = np.array([f"g{k % 6}" for k in range(60)])
    return RatedPieces(statistics, model.rated(features), group), model


def test_fit_recovers_planted_coefficients() -> None:
    pieces, model = planted()
    features = md.mood_features(np.array([cells.sum(axis=0) for cells in pieces.statistics]))
    fitted = mood_fit.fit_model(features, pieces.ratings, np.ones(60), ridge=1e-12)
    np.testing.assert_allclose(fitted.weights, model.weights, atol=1e-5)
    np.testing.assert_allclose(fitted.intercept, model.intercept, atol=1e-5)
    shrunk = mood_fit.fit_model(features, pieces.ratings, np.ones(60), ridge=10.0)
    assert np.abs(shrunk.weights).sum() < 0.5 * np.abs(model.weights).sum()


def test_weights_count_like_repeated_rows() -> None:
    pieces, _ = planted()
    features = md.mood_features(np.array([cells.sum(axis=0) for cells in pieces.statistics]))
    times = np.arange(60) % 3 + 1
    weighted = mood_fit.fit_model(features, pieces.ratings, times.astype(float))
    repeated = mood_fit.fit_model(
        np.repeat(features, times, axis=0),
        np.repeat(pieces.ratings, times, axis=0),
        np.ones(times.sum()),
    )
    np.testing.assert_allclose(weighted.weights, repeated.weights, atol=1e-9)


def test_cross_validation_tells_signal_from_noise() -> None:
    pieces, _ = planted()
    scores = mood_fit.cross_validate(pieces, ridge=1e-3)
    assert set(scores) == {"piece", "10 s", "20 s", "30 s"}
    assert (scores["piece"].r2 > 0.8).all()
    noise = np.random.default_rng(1).uniform(-1, 1, (60, 2))
    useless = mood_fit.cross_validate(RatedPieces(pieces.statistics, noise, pieces.group))
    assert (useless["piece"].r2 < 0.2).all()


def test_coefficients_make_a_model_file(tmp_path: Path) -> None:
    pieces, _ = planted()
    data = mood_fit.coefficients(pieces, pieces.statistics, datetime.date(2020, 1, 2))
    path = tmp_path / "mood.json"
    path.write_text(json.dumps(data))
    model = MoodModel.from_json(path)
    assert data["date"] == "2020-01-02"
    assert data["pieces"] == 60
    assert (model.steering_low < model.steering_high).all()
    rated = model.rated(pieces.windows(10, 1)[0])
    outside = (rated < model.steering_low) | (rated > model.steering_high)
    assert (np.abs(outside.mean(axis=0) - 0.04) < 0.02).all()


def make_data(folder: Path) -> None:
    (folder / "manifests").mkdir()
    (folder / "midi").mkdir()
    rated, corpus = [], []
    for k in range(8):
        notes = arrangement(bool(k % 2), 0.25 + 0.1 * k, 50 + 5 * k)
        path = f"midi/{k}.mid"
        write_midi(notes, folder / path)
        rated.append(
            {"path": path, "valence": -0.2 * (k % 2), "arousal": -0.1 * k, "franchise": f"f{k % 4}"}
        )
        corpus.append({"path": path, "split": "train" if k else "val", "kind": "main"})
    for name, rows in (("vgmidi", rated), ("pop909", corpus)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "manifests" / f"{name}.jsonl").write_text(text)


def test_command_prints_the_table_and_writes_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(tmp_path)
    target = tmp_path / "mood_coefficients.json"
    monkeypatch.setattr(mood_fit, "COEFFICIENTS_PATH", target)
    assert mood_fit.main(["--data", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "8 pieces, 4 franchises" in printed
    assert "no loudness" in printed
    assert not target.exists()
    assert mood_fit.main(["--data", str(tmp_path), "--write"]) == 0
    assert json.loads(target.read_text())["steering"]["pieces"] == 7
    MoodModel.from_json(target)


def test_command_names_what_is_wrong_with_the_data(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match=r"cannot read manifest .*vgmidi\.jsonl"):
        mood_fit.main(["--data", str(tmp_path)])
    make_data(tmp_path)
    manifest = tmp_path / "manifests" / "vgmidi.jsonl"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([lines[0], '{"path": "a.mid", "valence": 0.1}']))
    with pytest.raises(KmidiError, match="line 2: arousal is missing"):
        mood_fit.main(["--data", str(tmp_path)])
    manifest.write_text(lines[0] + "\nno json")
    with pytest.raises(KmidiError, match="line 2: not JSON"):
        mood_fit.main(["--data", str(tmp_path)])
    manifest.write_text("")
    with pytest.raises(KmidiError, match="no lines"):
        mood_fit.main(["--data", str(tmp_path)])
