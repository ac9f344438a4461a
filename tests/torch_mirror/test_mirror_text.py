"""`kmidi_torch.models` reads like `kmidi_mlx.models`: same classes, functions, arguments, order."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kmidi_mlx", "kmidi_torch")
MIRRORED = (
    "layers", "kv_cache", "midi_transformer", "swin", "sound_places", "spectocloud_vit", "tonality",
    "emotion_recognizer", "lora", "adapters",
)  # fmt: skip
# what MLX has fused and PyTorch has not; and a ring has to know its device
ONLY_IN_TORCH = {
    "checkpoint(block)",
    "rope(x, periods, offset)",
    "scaled_dot_product_attention(queries, keys, values, scale, mask, sinks)",
}
# layers of quantised weights are MLX's own
ONLY_IN_MLX = {"plain_weight(linear)"}
TOLD_MORE = {
    "KVCache.__init__(self, config, batch_size, dtype, device)":
        "KVCache.__init__(self, config, batch_size, dtype)",
    "_halved(size, like)": "_halved(size)",
    "_pooling(size, parts, like)": "_pooling(size, parts)",
}  # fmt: skip

BLOCK_MLX = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mlx":
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
for name in sys.argv[1:]:
    importlib.import_module("kmidi_torch.models." + name)
"""


def outline(path: Path) -> list[str]:
    """Every class, field, function and argument of a file, in order."""
    found: list[str] = []

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found.append(prefix + node.name)
                walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                name = "forward" if node.name == "__call__" else node.name
                arguments = ", ".join(argument.arg for argument in node.args.args)
                found.append(f"{prefix}{name}({arguments})")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.append(prefix + node.target.id)

    walk(ast.parse(path.read_text("utf-8")).body, "")
    return found


def attributes(path: Path) -> list[str]:
    """Every `self.x` that a constructor sets, in order: the names of the parameters."""
    tree = ast.parse(path.read_text("utf-8"))
    makers = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    return [
        target.attr
        for maker in makers
        for node in ast.walk(maker)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute) and not target.attr.startswith("_")
    ]


@pytest.mark.parametrize("name", MIRRORED)
def test_the_two_files_hold_the_same(name: str) -> None:
    ours, theirs = (ROOT / package / "models" / f"{name}.py" for package in PACKAGES)
    mirrored = [TOLD_MORE.get(line, line) for line in outline(theirs) if line not in ONLY_IN_TORCH]
    assert mirrored == [line for line in outline(ours) if line not in ONLY_IN_MLX]
    assert attributes(theirs) == attributes(ours)


def test_every_exception_is_still_needed() -> None:
    lines = {
        line for name in MIRRORED for line in outline(ROOT / "kmidi_torch/models" / f"{name}.py")
    }
    assert lines >= ONLY_IN_TORCH | TOLD_MORE.keys()
    assert set(outline(ROOT / "kmidi_mlx/models/lora.py")) >= ONLY_IN_MLX


def test_the_mirror_needs_no_mlx() -> None:
    pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")
    done = subprocess.run(
        [sys.executable, "-c", BLOCK_MLX, *MIRRORED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_only_the_floors_without_framework_are_imported() -> None:
    above = {"models", "generation", "training", "evaluation"}
    for path in (ROOT / "kmidi_torch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("kmidi_mlx"):
                rooms = {*str(node.module).split(".")[1:2], *(a.name for a in node.names)}
                assert not rooms & above, path.name
