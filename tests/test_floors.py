"""The house's rules that can be checked: who imports whom, and that files stay readable."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import kmidi_mlx

PACKAGE = Path(kmidi_mlx.__file__).parent
FRAMEWORK_FLOORS = ("models", "generation", "training", "evaluation")
# of the live application, who owns the work of MLX and who puts everything together
LIVE_WITH_FRAMEWORK = {
    f"kmidi_mlx.live.{name}" for name in ("visualiser", "engine_loop", "concert")
}
COMMANDS = (
    "train", "generate", "picture", "evaluate", "evaluate_kinds", "prepare", "prepare_kinds",
    "hello", "convert", "finetune", "push", "pull", "__main__",
)  # fmt: skip

# the floor of every room, as in docs/architecture.md
FLOORS = {
    **dict.fromkeys(
        ("errors", "config", "config_file", "config_section", "strict_yaml", "emotion",
         "emotion_flags", "atomic", "command", "console", "blas", "torch_file", "torch_pickler",
         "torch_unpickler", "quantization", "optimizer_groups", "adapter", "adapter_config",
         "live_config", "shipped", "folder_lock"), 0,
    ),
    **dict.fromkeys(("music", "audio", "spectocloud", "checkpoint", "checkpoint_model",
                     "conversion", "adapter_file"), 1),
    "data": 2,
    **dict.fromkeys(("models", "generation", "runs"), 3),
    **dict.fromkeys(("training", "evaluation", "hub", "model_card", "sharing"), 4),
    **dict.fromkeys(COMMANDS, 5),
    "live": 5,
    "workflow": 5,
}  # fmt: skip

IMPORT_WITHOUT_FRAMEWORKS = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mlx", "torch"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def _modules() -> list[str]:
    found = pkgutil.walk_packages([str(PACKAGE)], "kmidi_mlx.")
    return [module.name for module in found]


def _import_blocked(*names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_WITHOUT_FRAMEWORKS, *names]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _imported_rooms(path: Path) -> set[str]:
    """Rooms of this package that a file imports, also inside functions."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "kmidi_mlx":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kmidi_mlx."):
            rooms.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            rooms |= {name[1] for name in names if name[0] == "kmidi_mlx" and len(name) > 1}
    return rooms


def test_rooms_import_nothing_from_above() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert len(files) > 50
    for path in files:
        own = FLOORS[path.relative_to(PACKAGE).parts[0].removesuffix(".py")]
        above = {room for room in _imported_rooms(path) if FLOORS.get(room, 0) > own}
        assert not above, f"{path.relative_to(PACKAGE)} imports from above: {sorted(above)}"


def test_lower_floors_need_no_framework() -> None:
    lower = [name for name in _modules() if name.split(".")[1] not in FRAMEWORK_FLOORS]
    lower = [name for name in lower if name not in LIVE_WITH_FRAMEWORK]
    assert len(lower) > 25
    done = _import_blocked(*lower)
    assert done.returncode == 0, done.stderr


def test_the_block_blocks() -> None:
    assert _import_blocked("kmidi_mlx.models.midi_transformer").returncode != 0


def test_commands_load_no_framework_before_their_work() -> None:
    done = _import_blocked(*(f"kmidi_mlx.{name}" for name in COMMANDS))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", ["kmidi_mlx", "kmidi_torch", "bench", "tests"])
def test_files_stay_readable(folder: str) -> None:
    files = list((PACKAGE.parent / folder).rglob("*.py"))
    assert files
    too_long = [path.name for path in files if len(path.read_text("utf-8").splitlines()) > 500]
    assert not too_long
