# Needs only make and Python 3.11 or newer; everything is installed into .venv beside this file.
#   make setup   install            make test   all checks            make demo   the main job on a clip made here

# The first interpreter on the path that is new enough; choose another with: make setup PYTHON=/path/to/python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: setup test demo
.DEFAULT_GOAL := setup

setup: $(INSTALLED)
	@echo "unwrap is installed: $(BIN)/unwrap --help"

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "unwrap needs Python 3.11 or newer, and none is on the path."; exit 1; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "unwrap needs Python 3.11 or newer, which $(PYTHON) is not."; exit 1; }
	@if ! $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null; then \
		echo "creating $(VENV) with $$("$(PYTHON)" --version)"; \
		"$(PYTHON)" -m venv --clear $(VENV) || { rm -rf $(VENV); \
			echo "$(PYTHON) cannot create environments; on Debian and Ubuntu install the package python3-venv."; exit 1; }; fi
	@echo "installing uv, then unwrap with the versions of constraints.txt (several GB the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --build-constraint constraints.txt \
		--editable '.[dev,diffusion,exr,metrics,psd]'
	@touch $@

# Two workers of one thread each: with more threads than free cores, small operators run far slower.
test: export OMP_NUM_THREADS := 1
test: export OMP_WAIT_POLICY := PASSIVE
test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

demo: $(INSTALLED)
	$(BIN)/unwrap demo
