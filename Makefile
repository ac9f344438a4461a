# make run   environment, install, train a small model for a minute, then play: opens the page; Ctrl-C ends it
# make hello the same without playing: writes out/hello.mid and .png
# make test  environment, install, all tests
# PYTHON chooses the interpreter (3.11 to 3.13), VENV where the environment goes, LIVE flags of `kmidi live`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# what the main job needs, and beside it what tests, lint and types need (PyTorch is large)
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed

# two processes of tests, so that each keeps to one core
ONE_THREAD := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1

.PHONY: run hello test slow lint types check clean

run: hello
	$(BIN)/python -m kmidi_mlx.live --generator out/hello/model $(LIVE)

hello: $(INSTALLED)
	$(BIN)/python -m kmidi_mlx.hello --out out

test: $(DEVELOPED)
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(DEVELOPED)
	$(BIN)/python -m pytest -m slow

lint: $(DEVELOPED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEVELOPED)
	$(BIN)/mypy

check: lint types test

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"kmidi needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}; choose another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[audio,cloud,live,midi,sound]'
	touch $(INSTALLED)

$(DEVELOPED): $(INSTALLED)
	$(PIP) -e '.[dev]'
# SkyPilot wants older libraries than kmidi has, so its loader has an environment of its own
	$(PYTHON) -m venv $(VENV)/skypilot
	$(VENV)/skypilot/bin/python -m pip install --quiet --disable-pip-version-check skypilot==0.14.1
	touch $(DEVELOPED)

clean:
	rm -rf $(VENV) out
