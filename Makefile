# Commands:   make demo   the main job, from nothing     make test   every test     make compat   every tested engine version
#
# Needs x86-64 Linux with glibc, Python 3.11-3.13 with its headers, a C compiler and pip. No GPU, no CUDA toolkit.

PYTHON ?= python3
ENGINE_VERSION ?= 0.32.0
# The version that the recordings beside the tests were made with.
RECORDED_VERSION := 0.23.0
LAUNCHER := .venv
ENGINE := .venv-vllm
RECORDED := .venv-vllm-$(RECORDED_VERSION)
PACKAGES := shim predictor coordinator integrations validation cli
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc $(PACKAGES) -type f \
             -not -path '*/__pycache__/*' 2>/dev/null)

# A CUDA toolkit of this machine must not be found: what runs here has to run where there is none.
export CUDA_HOME :=
export CUDA_PATH :=
export PATH := $(shell printf '%s' "$$PATH" | tr ':' '\n' | grep -v cuda | paste -sd:)

.PHONY: demo test check compat models environments requirements clean

demo:
	@echo "Environments: the launcher's in $(LAUNCHER), vLLM $(ENGINE_VERSION)'s in $(ENGINE) (about 10 GB to download once)"
	@$(MAKE) --no-print-directory --jobs 3 environments
	$(LAUNCHER)/bin/hyperlapse bench --model qwen3-14b --gpu h100-sxm-80gb --rate 4 --requests 100 \
	  --input-len 1024 --output-len 128

test: environments $(RECORDED)/.installed $(LAUNCHER)/.dev check
	HYPERLAPSE_ENGINE_PYTHON=$(CURDIR)/$(ENGINE)/bin/python \
	HYPERLAPSE_ENGINE_PYTHON_PREVIOUS=$(CURDIR)/$(RECORDED)/bin/python $(LAUNCHER)/bin/python -m pytest

environments: $(LAUNCHER)/.installed $(ENGINE)/.installed

$(LAUNCHER)/.uv:
	$(PYTHON) -m venv --without-pip $(LAUNCHER) # Debian's python3 has pip, but venv's own copy of it only with python3-venv
	$(PYTHON) -m pip --python $(LAUNCHER)/bin/python install --quiet --disable-pip-version-check uv
	touch $@

$(LAUNCHER)/.requirements: requirements/launcher.txt | $(LAUNCHER)/.uv
	$(LAUNCHER)/bin/uv pip install --quiet --python $(LAUNCHER)/bin/python -r requirements/launcher.txt
	touch $@

# Built once, installed everywhere.
build/wheel/.built: $(SOURCES) | $(LAUNCHER)/.uv
	rm -rf build/wheel
	@echo "Building the C libraries and the wheel"
	$(LAUNCHER)/bin/uv build --quiet --wheel --out-dir build/wheel .
	touch $@

INSTALL_WHEEL = $(LAUNCHER)/bin/uv pip install --quiet --python $(@D)/bin/python --no-deps \
  --reinstall-package hyperlapse build/wheel/*.whl

$(LAUNCHER)/.installed: $(LAUNCHER)/.requirements build/wheel/.built
	$(INSTALL_WHEEL)
	touch $@

$(LAUNCHER)/.dev: requirements/dev.txt $(LAUNCHER)/.requirements
	$(LAUNCHER)/bin/uv pip install --quiet --python $(LAUNCHER)/bin/python -r requirements/dev.txt
	touch $@

# Where PYTHONDONTWRITEBYTECODE is set, each process would compile them anew: 20 s of CPU time instead of 8.
SERVER_IMPORTS := vllm.v1.engine.core, vllm.v1.worker.gpu_worker, vllm.entrypoints.openai.api_server

define engine_environment
$(1)/.requirements-$(2): requirements/vllm-$(2).txt | $(LAUNCHER)/.uv
	$(LAUNCHER)/bin/uv venv --quiet --python $(LAUNCHER)/bin/python --clear $(1)
	$(LAUNCHER)/bin/uv pip install --python $(1)/bin/python -r requirements/vllm-$(2).txt
	@echo "Compiling the Python modules that every start of vLLM $(2) imports"
	env -u PYTHONDONTWRITEBYTECODE $(1)/bin/python -W ignore -c "import $(SERVER_IMPORTS)" >/dev/null
	touch $$@

$(1)/.installed: $(1)/.requirements-$(2) build/wheel/.built
	$$(INSTALL_WHEEL)
	touch $$@
endef
$(eval $(call engine_environment,$(ENGINE),$(ENGINE_VERSION)))
$(eval $(call engine_environment,$(RECORDED),$(RECORDED_VERSION)))

# Boots every tested release in both details (minutes each, about 9 GB of downloads a release) and writes
# docs/compatibility.md; COMPAT="--versions 0.19.0 --keep"
compat: $(LAUNCHER)/.installed
	$(LAUNCHER)/bin/python benchmarks/compatibility.py $(COMPAT)

# Mixtures of experts, FP8 and latent attention in both details, and their table in docs/compatibility.md; MODELS="--only mixtral-8x7b"
models: environments
	$(LAUNCHER)/bin/python benchmarks/models.py $(MODELS)

# ruff, mypy, and that generated files are current
check: environments $(LAUNCHER)/.dev
	$(LAUNCHER)/bin/ruff check .
	$(LAUNCHER)/bin/ruff format --check .
	mkdir -p build/typing/hyperlapse
	ln -sfn $(foreach package,$(PACKAGES),../../../$(package)) build/typing/hyperlapse/
	$(LAUNCHER)/bin/mypy
	$(LAUNCHER)/bin/python -m hyperlapse.shim.stubgen --check --root .
	$(LAUNCHER)/bin/python -m hyperlapse.coordinator.generate --check --root .

COMPILE := $(LAUNCHER)/bin/uv pip compile --quiet --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-annotate \
  --no-header --upgrade

requirements: $(LAUNCHER)/.uv
	$(COMPILE) pyproject.toml -o requirements/launcher.txt
	$(COMPILE) requirements/dev.in -c requirements/launcher.txt -o requirements/dev.txt
	for version in $(ENGINE_VERSION) $(RECORDED_VERSION); do \
	  $(COMPILE) requirements/vllm-$$version.in -o requirements/vllm-$$version.txt || exit; done

clean:
	rm -rf $(LAUNCHER) $(ENGINE) $(RECORDED) build dist
