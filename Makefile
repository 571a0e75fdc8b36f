# `make demo` and `make test` work on a fresh machine: they make a virtual environment first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests share the cores between processes; a product that waits in every process for both cores is slow.
WORKERS ?= 2
JOBS ?= 1

.PHONY: demo test check bench bench-gpu auto tasks compare quality docs conformance format clean

KERNELS := $(wildcard src/trimtab/kernels/cpu/*.cpp src/trimtab/kernels/cpu/*.h)
$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test,check]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/trimtab demo --out runs/demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

# Goes on where it was stopped; JOBS processes; ONLY narrows it, such as ONLY='--law hf-peft'.
conformance: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/trimtab methods --probe --out docs/conformance.json --jobs $(JOBS) $(ONLY)
	$(BIN)/python docs/generate.py

# Every method on real work, hours of it; goes on where it was stopped: MINUTES=60, JOBS=2.
MINUTES ?= 100000
quality: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/quality --jobs $(JOBS) --minutes $(MINUTES)
	$(BIN)/python docs/generate.py

# Measured plans against the same budget spread evenly; goes on where it was stopped: MINUTES=60.
auto: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/auto.py --minutes $(MINUTES)

tasks: $(VENV)/.installed
	$(BIN)/python benchmarks/tasks/run.py
	$(BIN)/python benchmarks/tasks/page.py

# Three comparisons on real data, whose reports stay in runs/compare; goes on where it was stopped.
compare: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compare.py

bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/many.py
	$(BIN)/python benchmarks/head.py
	$(BIN)/python benchmarks/decoder.py
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/others.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/page.py
	$(BIN)/python docs/generate.py

# On a machine with a CUDA device; elsewhere it says so and stops. Unsloth takes part if installed.
bench-gpu: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench,quant]'
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/page.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
