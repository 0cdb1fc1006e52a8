# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up its own virtual environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(wildcard kernels/*) CMakeLists.txt pyproject.toml
SOURCES := dispose_rt export benchmarks scripts examples tests

.PHONY: demo test test-slow check format clean
.DELETE_ON_ERROR:

$(STAMP): $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[export,tensorrt-rtx,page,test]'
	touch $@

# toy engines -> out/demo.mp4 and out/demo.png
demo: $(STAMP)
	$(BIN)/python examples/demo.py

# two workers, one thread each: most of the time goes into tracing networks, which is Python; files in our order, the
# longest first (tests/conftest.py)
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# what takes more than three minutes a test: AOTInductor end to end, builds that are killed again and again
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

check: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(wildcard kernels/*.h kernels/*.cpp kernels/*.cu)

format: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/clang-format -i $(wildcard kernels/*.h kernels/*.cpp kernels/*.cu)

clean:
	rm -rf $(VENV) build dist out
