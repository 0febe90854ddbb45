# Three commands matter: `make demo`, `make evaluate` and `make test`. Each first sets up what it lacks in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt

PROMPTS := "a red 7 on a white background" "a green 3 on a yellow background" \
           "a cyan 7 left of a red 3 on a yellow background" "a red 4 above a blue 3 on a black background"

# A file stays with one process, each process keeps to one core.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

# Implementations that ours are compared with, and torchao, which slows every import of diffusers. They lie apart: most
# need torchvision, which must stay out of the environment itself.
REFERENCES := clean-fid DeepCache lpips torch-fidelity torchao torchvision

.PHONY: demo evaluate test lint format types pytest setup clean

demo: $(VENV)/.core ## draw the same prompts without and with TaylorSeer, side by side in one picture
	$(BIN)/diffaccel generate $(PROMPTS) --compare --interval 4 --order 2 -o demo.png

evaluate: $(VENV)/.evaluate ## judge TaylorSeer and fitted weights: evaluation/report.html, about two minutes
	$(BIN)/diffaccel evaluate --method taylorseer:interval=4,order=2 --method taylorseer:interval=6,order=1 \
		--method fitted:interval=6 -o evaluation

test: $(VENV)/.dev $(VENV)/references/.complete ## lint, types and tests
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev
	$(BIN)/mypy

pytest: $(VENV)/.dev $(VENV)/references/.complete
	$(PYTEST)

setup: $(VENV)/.dev $(VENV)/references/.complete

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing diffaccel into $(VENV), one to four minutes the first time"
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.evaluate: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing diffaccel and what its metrics need into $(VENV), one to four minutes the first time"
	$(PIP_INSTALL) -e '.[eval,report]'
	@touch $@ $(VENV)/.core

$(VENV)/.dev: pyproject.toml constraints.txt tests/torchvision_guard.py | $(BIN)/python
	@echo "installing diffaccel and its development tools into $(VENV), one to four minutes the first time"
	$(PIP_INSTALL) -e '.[dev]'
	$(BIN)/python tests/torchvision_guard.py
	@touch $@ $(VENV)/.core $(VENV)/.evaluate

$(VENV)/references/.complete: constraints.txt Makefile | $(VENV)/.dev
	rm -rf $(@D)
	$(PIP_INSTALL) --no-deps --target $(@D) $(REFERENCES)
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis demo.png evaluation
