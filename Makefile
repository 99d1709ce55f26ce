# Needs only make and Python 3.11 or newer; everything is installed into .venv beside this file.
#   make setup       what a user needs
#   make setup-all   also the developers' tools and diffusion
#   make demo        the main job on a clip made here
#   make check       style, types, fast tests
#   make test        style, types, all tests
#   make coverage    which lines the tests run
#   make lowest      fast tests with the oldest packages allowed
#   make docs        the documentation as a site, in site/

# The first interpreter on the path that is new enough; choose another with: make setup PYTHON=/path/to/python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_ALL := $(VENV)/.installed-all
INSTALLED_DOCS := $(VENV)/.installed-docs
USER_EXTRAS := exr,psd
ALL_EXTRAS := dev,diffusion,exr,metrics,onnx,psd
INSTALL = $(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --build-constraint constraints.txt

# Without an NVIDIA GPU, a torch without CUDA saves 4 GB; its own index has it. Where that cannot be reached (or does
# not have these versions), the torch of the package index is taken, which runs everywhere.
define install
	@backend=$$(UV_HTTP_RETRIES=0 $(INSTALL) --torch-backend=auto --dry-run --quiet --editable '.[$(1)]' \
		>/dev/null 2>&1 && echo --torch-backend=auto); $(INSTALL) $$backend --editable '.[$(1)]'
endef

# The loops of the fit and of renders are compiled now, a quarter of a minute of work that would be waited for later.
COMPILE := $(BIN)/python -m neural_fields.planar.gauss_newton.compiled_looks && \
	$(BIN)/python -c "from neural_fields.rendering import blend_kernels; blend_kernels.compile_blends()"

.PHONY: setup setup-all check test coverage demo docs lowest
.DEFAULT_GOAL := setup

setup: $(INSTALLED)
	@echo "unwrap is installed: $(BIN)/unwrap --help"

setup-all: $(INSTALLED_ALL)
	@echo "unwrap is installed with everything: $(BIN)/unwrap --help"

$(BIN)/uv:
	@test -n "$(PYTHON)" || { echo "unwrap needs Python 3.11 or newer, and none is on the path."; exit 1; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "unwrap needs Python 3.11 or newer, which $(PYTHON) is not."; exit 1; }
	@if ! $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null; then \
		echo "creating $(VENV) with $$("$(PYTHON)" --version)"; \
		"$(PYTHON)" -m venv --clear $(VENV) || { rm -rf $(VENV); \
			echo "$(PYTHON) cannot create environments; on Debian and Ubuntu install the package python3-venv."; exit 1; }; fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/uv
	@echo "installing unwrap with the versions of constraints.txt (the first time takes minutes)"
	$(call install,$(USER_EXTRAS))
	@$(COMPILE)
	@touch $@

$(INSTALLED_ALL): pyproject.toml constraints.txt | $(BIN)/uv
	@echo "installing unwrap and the developers' tools with the versions of constraints.txt (the first time takes minutes)"
	$(call install,$(ALL_EXTRAS))
	@touch $@

$(INSTALLED_DOCS): pyproject.toml constraints.txt | $(BIN)/uv
	@echo "installing what the documentation needs with the versions of constraints.txt (the first time takes minutes)"
	$(call install,docs)
	@touch $@

# Two workers of one thread each: with more threads than free cores, small operators run far slower.
check test coverage lowest: export OMP_NUM_THREADS := 1
check test coverage lowest: export OMP_WAIT_POLICY := PASSIVE
# Compiled modules are kept, also where the environment forbids it: otherwise both workers and every process that a test
# starts compile torch, diffusers and this project anew, a minute of work in a run of all tests.
check test coverage lowest: export PYTHONDONTWRITEBYTECODE :=

# Types are checked beside the tests: they take one core for half a minute, or for a minute the first time.
check: $(INSTALLED_ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & types=$$!; $(COMPILE); $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"; tests=$$?; wait $$types && exit $$tests

# From Python 3.12 on the interpreter itself can count lines, which costs little; before, the tests take half as long
# again (make coverage).
CHEAP_COVERAGE = $(shell $(BIN)/python -c 'import sys; print("--cov" if sys.version_info >= (3, 12) else "")' 2>/dev/null)
test: export COVERAGE_CORE = $(if $(CHEAP_COVERAGE),sysmon)
test: $(INSTALLED_ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & types=$$!; $(COMPILE); $(BIN)/python -m pytest -n 2 --dist worksteal $(CHEAP_COVERAGE); tests=$$?; wait $$types && exit $$tests

coverage: $(INSTALLED_ALL)
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov

# The lower bounds of pyproject.toml, installed as they stand in an environment of their own.
lowest: | $(BIN)/uv
	"$(PYTHON)" -m venv --clear .venv-lowest
	$(BIN)/uv pip install --python .venv-lowest/bin/python --resolution lowest-direct \
		--editable '.[dev,exr,metrics,onnx,psd]'
	.venv-lowest/bin/python -m pytest -n 2 --dist worksteal -m "not slow" -W default

# The variable silences news of the makers of mkdocs, which are not about these pages.
docs: export NO_MKDOCS_2_WARNING := 1
# A broken link, a missing anchor, an unknown name of the API, or a page that loads something from elsewhere is an error.
docs: $(INSTALLED_DOCS)
	$(BIN)/mkdocs build --strict

demo: $(INSTALLED)
	$(BIN)/unwrap demo
