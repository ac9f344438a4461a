"""What a conversion keeps, what it changes and says; with MLX's networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from mlx import nn
from mlx.utils import tree_flatten
from small_checkpoint import METADATA, SHAPES, SMALL, expected, make, same, untouched, weights

from kmidi_mlx import checkpoint
from kmidi_mlx.checkpoint import load_arrays, load_stored, save_arrays
from kmidi_mlx.config import EmotionRecognizerConfig, EmotionRecognizerModelConfig
from kmidi_mlx.config_file import config_to_dict, save_config
from kmidi_mlx.conversion import state_shapes
from kmidi_mlx.convert import find_network
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.torch_file import write_torch_file

# --- round trips ---------------------------------------------------------------------------------


def test_a_checkpoint_goes_there_and_back_bit_for_bit(source: Path, tmp_path: Path) -> None:
    done = make(source, tmp_path / "best.pt")
    assert (done.path, done.model) == (tmp_path / "best.pt", "midi_generator")
    assert (done.count, done.notices) == (len(SHAPES), ())
    same(source, tmp_path / "best.pt")
    make(tmp_path / "best.pt", tmp_path / "back.safetensors")
    same(source, tmp_path / "back.safetensors")
    make(tmp_path / "back.safetensors", tmp_path / "again" / "best.pt")
    assert (tmp_path / "again" / "best.pt").read_bytes() == (tmp_path / "best.pt").read_bytes()


def test_the_order_of_a_source_does_not_matter(tmp_path: Path) -> None:
    for name, turn in (("one", list), ("two", reversed)):
        arrays, metadata = (dict(turn(part.items())) for part in (weights(), METADATA))
        write_torch_file(tmp_path / f"{name}.pt", arrays, metadata)
        make(tmp_path / f"{name}.pt", tmp_path / name / "best.pt")
    one, two = ((tmp_path / name / "best.pt").read_bytes() for name in ("one", "two"))
    assert one == two


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_numbers_survive(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("any")
    kind = data.draw(st.sampled_from(["float32", "float16", "float64"]))
    shapes = data.draw(
        st.dictionaries(
            st.text("abc.", min_size=1, max_size=5),
            arrays_of.array_shapes(min_dims=0, min_side=0, max_side=3),
            max_size=4,
        )
    )
    finite = st.floats(width=np.dtype(kind).itemsize * 8, allow_nan=False, allow_infinity=False)
    numbers = {
        name: data.draw(arrays_of.arrays(kind, shape, elements=finite))
        for name, shape in shapes.items()
    }
    save_arrays(folder / "a.safetensors", numbers, METADATA)
    make(folder / "a.safetensors", folder / "b.pt", lambda _: shapes)
    make(folder / "b.pt", folder / "c.safetensors", lambda _: shapes)
    same(folder / "a.safetensors", folder / "c.safetensors")


def test_a_training_state_goes_there_and_back_bit_for_bit(state: Path, tmp_path: Path) -> None:
    done = make(state, tmp_path / "state.pt", state=True)
    assert done.count == len(state_shapes(SHAPES, averaged=True))
    make(tmp_path / "state.pt", tmp_path / "back.safetensors", state=True)
    same(state, tmp_path / "back.safetensors")


def test_the_state_of_a_real_run_has_the_names_that_are_expected(
    tiny_run: Path, tmp_path: Path
) -> None:
    done = make(tiny_run, tmp_path / "out", state=True)
    assert done.path == tmp_path / "out" / "last" / "state.pt"
    same(tiny_run / checkpoint.LAST, done.path)
    assert make(tiny_run, tmp_path / "out").path == tmp_path / "out" / "best.pt"
    same(tiny_run / checkpoint.BEST, tmp_path / "out" / "best.pt")


def test_a_recogniser_is_converted_too(tmp_path: Path) -> None:
    config = EmotionRecognizerConfig(
        model=EmotionRecognizerModelConfig(n_mels=16, dim=16, num_layers=2, kernel_size=3)
    )
    metadata = {"model": config.name, "config": config_to_dict(config), "temperature": 1.25}
    save_arrays(tmp_path / "a.safetensors", weights(expected(config)), metadata)
    assert make(tmp_path / "a.safetensors", tmp_path / "b.pt").model == "emotion_recognizer"
    same(tmp_path / "a.safetensors", tmp_path / "b.pt")


# --- where from, where to ------------------------------------------------------------------------


def test_folders_have_standard_names(source: Path, state: Path, tmp_path: Path) -> None:
    run = source.parent
    assert make(run, run).path == run / "best.pt"
    assert make(run, run, state=True).path == run / "last" / "state.pt"
    out = tmp_path / "out"
    assert make(run / "best.pt", out).path == out / "best.safetensors"
    assert make(run / "last" / "state.pt", out, state=True).path == out / "last/state.safetensors"
    source.unlink()  # now the torch file is what the folder has
    assert make(run, tmp_path / "other").path == tmp_path / "other" / "best.safetensors"


def test_a_converted_file_can_be_used(source: Path, tmp_path: Path) -> None:
    from kmidi_mlx.models.loading import load_generator

    make(source, tmp_path / "best.pt")
    one, two = load_generator(source), load_generator(tmp_path / "best.pt")
    ours, theirs = (dict(tree_flatten(loaded.model.parameters())) for loaded in (one, two))
    assert all(mx.array_equal(ours[name], theirs[name]).item() for name in ours)
    assert one.metadata == two.metadata


def test_what_is_there_is_not_replaced_unasked(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "best.pt"
    target.write_bytes(b"precious")
    with pytest.raises(KmidiError, match=r"best\.pt is there already; give --force"):
        make(source, target)
    assert target.read_bytes() == b"precious"
    make(source, target, force=True)
    same(source, target)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_not_converted_into_itself(source: Path, tmp_path: Path, force: bool) -> None:
    before = untouched(tmp_path)
    link = tmp_path / "link.safetensors"
    link.symlink_to(source)
    for target in (source, source.parent / "." / source.name, link):
        with pytest.raises(KmidiError, match="cannot be converted into itself"):
            make(source, target, force=force)
    link.unlink()
    assert untouched(tmp_path) == before


def test_a_source_that_is_missing_is_named(tmp_path: Path) -> None:
    for missing in ("none.pt", "none.safetensors", "none"):
        with pytest.raises(KmidiError, match=rf"no such checkpoint: .*{missing}"):
            make(tmp_path / missing, tmp_path / "out.pt")
    with pytest.raises(KmidiError, match=r"neither .*best\.safetensors nor best\.pt is there"):
        make(tmp_path, tmp_path / "out.pt")
    with pytest.raises(KmidiError, match=r"neither .*state\.safetensors nor state\.pt is there"):
        make(tmp_path, tmp_path / "out.pt", state=True)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_is_told(source: Path, tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match=r"out\.onnx ends in \.onnx; name a file that ends in"):
        make(source, tmp_path / "out.onnx")


def test_a_folder_that_cannot_be_made_is_an_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("best.pt", "best.safetensors"):
        with pytest.raises(KmidiError, match="cannot make the folder"):
            make(source, tmp_path / "file" / name)


# --- numbers that change, and say so -------------------------------------------------------------


def test_weights_are_stored_as_fp16_when_asked(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "half.pt", dtype="fp16")
    arrays, metadata = load_arrays(tmp_path / "half.pt")
    assert metadata == load_arrays(source)[1]
    for name, array in weights().items():
        assert arrays[name].dtype == np.float16
        assert np.array_equal(arrays[name], array.astype(np.float16))
    make(tmp_path / "half.pt", tmp_path / "kept.safetensors")
    assert load_arrays(tmp_path / "kept.safetensors")[0]["final_norm.weight"].dtype == np.float16
    make(tmp_path / "half.pt", tmp_path / "wide.safetensors", dtype="fp32")
    wide = load_arrays(tmp_path / "wide.safetensors")[0]["final_norm.weight"]
    assert wide.dtype == np.float32
    assert np.array_equal(wide, arrays["final_norm.weight"])


def test_numbers_too_large_for_fp16_are_refused(tmp_path: Path) -> None:
    large = weights() | {"final_norm.weight": np.full(64, 65_520, np.float32)}
    save_arrays(tmp_path / "a.safetensors", large, METADATA)
    with pytest.raises(KmidiError, match=r"too large for fp16 in final_norm\.weight\."):
        make(tmp_path / "a.safetensors", tmp_path / "b.pt", dtype="fp16")
    assert not (tmp_path / "b.pt").exists()


def test_bfloat16_is_widened_with_a_notice(source: Path, tmp_path: Path) -> None:
    half = {name: mx.array(array).astype(mx.bfloat16) for name, array in weights().items()}
    text = {"model": '"midi_generator"', "config": json.dumps(METADATA["config"])}
    mx.save_safetensors(str(tmp_path / "half.safetensors"), half, text)
    done = make(tmp_path / "half.safetensors", tmp_path / "best.pt")
    assert done.notices == (
        f"{len(half)} arrays were bfloat16 and are float32 now, their values unchanged",
    )
    for name, array in load_arrays(done.path)[0].items():
        assert np.array_equal(array, np.array(half[name].astype(mx.float32)))


def test_quantised_weights_become_plain_with_a_notice(tmp_path: Path) -> None:
    network = find_network("kmidi_mlx", SMALL)(SMALL.model)
    network.load_weights([(name, mx.array(array)) for name, array in weights().items()])
    nn.quantize(network, group_size=64, bits=5)
    quantised = {name: np.array(value) for name, value in tree_flatten(network.parameters())}
    count = sum(name.endswith(".scales") for name in quantised)
    save_arrays(tmp_path / "q.safetensors", quantised, METADATA)
    done = make(tmp_path / "q.safetensors", tmp_path / "best.pt")
    assert done.notices == (
        f"{count} weights were quantised (5 bits in groups of 64) and are plain numbers now; "
        "what quantising lost stays lost",
    )
    assert count >= 10
    arrays = load_arrays(done.path)[0]
    assert {name: array.shape for name, array in arrays.items()} == SHAPES
    worst = max(float(np.abs(array - weights()[name]).max()) for name, array in arrays.items())
    assert 0 < worst < 0.2  # half a step of 31 over a range of about 7, doubled


def test_the_weights_to_use_are_taken_out_of_a_training_state(state: Path, tmp_path: Path) -> None:
    done = make(state, tmp_path / "best.pt")
    assert done.notices == (
        "these are the averaged weights of a training state, at step 7; --state takes all",
    )
    arrays, metadata = load_arrays(done.path)
    whole = load_arrays(state)[0]
    assert arrays.keys() == SHAPES.keys()
    assert all(np.array_equal(array, whole[f"average.{name}"]) for name, array in arrays.items())
    assert metadata["step"] == 7
    assert "progression" not in metadata

    plain = {name: array for name, array in whole.items() if not name.startswith("average.")}
    save_arrays(tmp_path / "plain.safetensors", plain, METADATA)
    done = make(tmp_path / "plain.safetensors", tmp_path / "plain.pt")
    assert done.notices[0].startswith("these are the weights of a training state")
    arrays = load_arrays(done.path)[0]
    assert all(np.array_equal(array, whole[f"weights.{name}"]) for name, array in arrays.items())


# --- a state_dict without metadata ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "notices"),
    [
        ("", 0),
        ("module.", 1),
        ("_orig_mod.", 1),
        ("module._orig_mod.", 2),
        ("_orig_mod.module.", 2),
    ],
)
def test_a_bare_state_dict_needs_to_be_told_what_it_is(
    tmp_path: Path, prefix: str, notices: int
) -> None:
    bare = {prefix + name: array for name, array in weights().items()}
    write_torch_file(tmp_path / "bare.pt", bare, {})
    with pytest.raises(KmidiError, match=r"does not say what it holds; give --model \(midi_gen"):
        make(tmp_path / "bare.pt", tmp_path / "best.safetensors")
    with pytest.raises(KmidiError, match=r"does not fit this model; missing:.*misshapen:"):
        make(tmp_path / "bare.pt", tmp_path / "best.safetensors", model="midi_generator")
    save_config(SMALL, tmp_path / "config.yaml")
    done = make(
        tmp_path / "bare.pt",
        tmp_path / "best.safetensors",
        model="midi_generator",
        config_files=[tmp_path / "config.yaml"],
    )
    assert len(done.notices) == notices
    assert all("was taken off the names" in notice for notice in done.notices)
    arrays, metadata = load_arrays(done.path)
    assert all(np.array_equal(arrays[name], array) for name, array in weights().items())
    assert metadata["model"] == "midi_generator"
    assert metadata["config"] == METADATA["config"]


def test_parts_that_were_compiled_alone_are_found(tmp_path: Path) -> None:
    parts = {
        name.replace("blocks.0.", "blocks.0._orig_mod."): array for name, array in weights().items()
    }
    save_arrays(tmp_path / "a.safetensors", parts, METADATA)
    done = make(tmp_path / "a.safetensors", tmp_path / "best.pt")
    assert done.notices == ("the prefix '_orig_mod.' was taken off the names",)
    parts["blocks.0.ffn_norm.weight"] = np.ones(64, np.float32)
    save_arrays(tmp_path / "a.safetensors", parts, METADATA)
    with pytest.raises(KmidiError, match="the same name with and without a wrapper's prefix"):
        make(tmp_path / "a.safetensors", tmp_path / "other.pt")


def test_a_copy_of_a_folder_is_complete(source: Path, tmp_path: Path) -> None:
    # what is read is closed again: the folder can be moved at once
    make(source.parent, source.parent)
    shutil.move(source.parent, tmp_path / "moved")
    assert load_stored(tmp_path / "moved" / "best.pt").widened == ()
