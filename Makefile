# Two commands do everything: `make demo` and `make test`. Each sets up .venv by itself, once.
PYTHON ?= python3
BIN := .venv/bin
# Spinning threads on a busy machine can be many times slower than one thread.
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_DISABLE_TELEMETRY ?= 1
export WANDB_MODE ?= disabled

.PHONY: analyses demo test bench docs notebooks setup lint clean

demo: setup
	$(BIN)/ttreg demo --out demo_out

# Every analysis of the paper on the embedded model, and one page of them: runs/analyses/index.html.
analyses: setup
	$(BIN)/python -m analyses paper --out runs/analyses

test: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -q -n 2 --dist loadfile
	@test ! -d build/screenshots || echo "What the browser tests saw: build/screenshots"

# glibc would otherwise hand every large tensor back to the system: page faults, not kernels.
bench: setup
	MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648 \
	$(BIN)/python -m benchmarks.run

# Every page from its sources, notebooks as they were built; a warning is an error. About a minute.
docs: .venv/.docs
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html

# Runs the sources in notebooks/ and writes the notebooks with their outputs.
notebooks: .venv/.docs
	$(BIN)/python notebooks/build.py

setup: .venv/.ready

.venv/.docs: .venv/.ready
	$(BIN)/python -m pip install --quiet --group docs
	touch .venv/.docs

# Made anew when the dependencies change.
.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group test
	touch .venv/.ready

lint: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/pyright

clean:
	rm -rf .venv demo_out runs/analyses .pytest_cache .ruff_cache .hypothesis
