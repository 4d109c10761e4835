# `make` lists the targets. Each sets up .venv by itself; a machine needs python3 (3.10 or later), g++ and make.
# pip's own settings apply, PIP_EXTRA_INDEX_URL for one, where another build of torch is wanted.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
ARGS ?=
# Whole files of tests side by side, the longest first (tests/conftest.py). More processes than these
# would only wait for one another's threads.
SIDE_BY_SIDE ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
CHECKED := $(addprefix tests/,bits layouts dropin checkpoints clipping amp modes)
# A build that fails is an error here, not a reason to test the slow path.
export FUSEDOPTIM_NATIVE ?= 1

# Several processes of tests share the processors: threads that spin while they wait for one another slow them all.
check test: export OMP_WAIT_POLICY ?= passive

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
READY := $(VENV)/.ready
TRAINERS := .venv-ecosystem
TRAINERS_READY := $(TRAINERS)/.ready
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready
DOCS := .venv-docs
DOCS_READY := $(DOCS)/.ready
# The releases that the package is tested under, each in an environment of its own. A build for CUDA takes several GB.
TORCHES ?= 2.10.0 2.11.0 2.12.1 2.13.0 2.14.1 2.15.0
CLANGS ?= $(shell compgen -c clang++ | grep -Ex 'clang\+\+(-[0-9]+)?' | sort -uV)
UNDER_EACH_TORCH := tests/bits/test_bits.py tests/native/test_direct.py
# FUSEDOPTIM_DIRECT=1 tries the fast path under a release that is not known yet; these two are about other settings of it.
BUT_NOT := not_tested or other_path
BUILT := $(VENV)/.built
SETTING := $(VENV)/.setting
# The environment variables that a build depends on.
SETTINGS := (FUSEDOPTIM_(NATIVE|CUDA|CMAKE_ARGS)|CXX|CXXFLAGS|LDFLAGS|TORCH_CUDA_ARCH_LIST|CUDACXX|CUDA_HOME|CUDA_PATH)=
NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py setup_cuda.py
CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
PY_FILES = fusedoptim benchmarks docs/conf.py examples tests setup.py setup_cuda.py
say = @printf '==> %s\n' $(1)

.PHONY: help build check test test-planted test-ecosystem bench bench-step bench-peers perf-gate publish lint clang sanitize fuzz format wheel \
  test-torch docs clean distclean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'check, test, test-planted, test-ecosystem, bench, bench-step, bench-peers, perf-gate, publish, sanitize and fuzz pass ARGS on: make test ARGS="-k adam"'

build: $(BUILT) ## compile the native module (4 CPU minutes, 12 with CUDA) and install, editable, into .venv
	@$(RUN) -m fusedoptim

check: $(BUILT) ## after each edit: style, types, and one case in forty of the tests of numbers and behaviour
	@$(RUN) -m ruff check $(PY_FILES)
	@$(RUN) -m ruff format --check $(PY_FILES)
	@$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)
	@$(RUN) -m mypy
	$(call say,'check: $(RUN) -m pytest $(SIDE_BY_SIDE) --sample 40 $(CHECKED) $(ARGS)')
	@$(RUN) -m pytest $(SIDE_BY_SIDE) --sample 40 $(CHECKED) $(ARGS)

test: $(BUILT) ## run the tests
	$(call say,'test: $(RUN) -m pytest $(SIDE_BY_SIDE) $(ARGS)')
	@$(RUN) -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-planted: $(BUILT) ## plant each known mistake in the CUDA code and see its tests notice it: after changes there or in the proof
	$(call say,'test-planted: $(RUN) -m pytest tests/cuda_on_cpu/test_planted.py $(ARGS)')
	@FUSEDOPTIM_PLANTED=all $(RUN) -m pytest tests/cuda_on_cpu/test_planted.py $(ARGS)
	@$(if $(ARGS),,$(RUN) tests/cuda_on_cpu/planted.py)

test-ecosystem: $(TRAINERS_READY) $(BUILT) ## train under Lightning, transformers and Accelerate, as under torch.optim
	$(call say,'test-ecosystem: $(TRAINERS)/bin/python -m pytest tests/ecosystem $(ARGS)')
	@$(TRAINERS)/bin/python -m pytest tests/ecosystem $(ARGS)

bench: $(BUILT) ## time whole training loops against torch.optim, with correctness beside every time
	$(call say,'bench: $(RUN) -m benchmarks loop $(ARGS)')
	@$(RUN) -m benchmarks loop $(ARGS)

bench-step: $(BUILT) ## time step() alone
	$(call say,'bench-step: $(RUN) -m benchmarks bench-step $(ARGS)')
	@$(RUN) -m benchmarks bench-step $(ARGS)

bench-peers: $(PEERS_READY) $(BUILT) ## time step() beside other optimizer packages that run on a CPU
	$(call say,'bench-peers: $(PEERS)/bin/python -m benchmarks peers $(ARGS)')
	@$(PEERS)/bin/python -m benchmarks peers $(ARGS)

perf-gate: $(BUILT) ## count instructions under valgrind and read the kernels, against the figures kept; reads no clock
	$(call say,'perf-gate: $(RUN) -m benchmarks gate $(ARGS)')
	@$(RUN) -m benchmarks gate $(ARGS)

publish: $(BUILT) ## write pages, tables and charts anew that are older than the results of the benchmarks
	$(call say,'publish: $(RUN) -m benchmarks publish $(ARGS)')
	@$(RUN) -m benchmarks publish $(ARGS)

lint: $(BUILT) ## check style, types and formatting, changing nothing
	$(call say,'lint: ruff')
	@$(RUN) -m ruff check $(PY_FILES)
	@$(RUN) -m ruff format --check $(PY_FILES)
	$(call say,'lint: mypy')
	@$(RUN) -m mypy
	$(call say,'lint: clang-format')
	@$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)
	$(call say,'lint: paths of this machine')
	@! git grep -nF -e '$(CURDIR)/' $(if $(filter-out /,$(HOME)),-e '$(HOME)/') 2>/dev/null || \
	  { echo >&2 'The files above name this machine.'; exit 1; }
	$(call say,'lint: clean')

clang: $(READY) ## build with each clang that is installed, with warnings as errors, and compare bits
	@for cxx in $(or $(CLANGS),none); do \
	  printf '==> clang: %s\n' $$cxx; [[ $$cxx != none ]] || continue; rm -rf build/$$cxx; \
	  CXX=$$cxx CXXFLAGS=-Werror FUSEDOPTIM_CUDA=0 $(PIP) install -q --no-build-isolation --no-deps --target build/$$cxx . && \
	  PYTHONPATH=build/$$cxx $(VENV)/bin/pytest -q tests/bits/test_bits.py $(ARGS) && \
	  (cd build/$$cxx && "$(CURDIR)/$(RUN)" -m fusedoptim | grep '^compiler  *clang') || exit 1; done

sanitize: ## run the tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer, which takes minutes
	@FUSEDOPTIM_CUDA=0 FUSEDOPTIM_CMAKE_ARGS=-DFUSEDOPTIM_SANITIZE=address,undefined $(MAKE) $(BUILT)
	$(call say,'sanitize: $(RUN) -m pytest $(ARGS)')
	@LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 $(RUN) -m pytest --capture=sys $(ARGS)

fuzz: $(READY) ## malformed arguments, and steps that something else meddles with, on a build of its own with both sanitizers
	@cmake=$$($(RUN) -c 'import cmake; print(cmake.CMAKE_BIN_DIR)'); export PATH="$$PWD/$(VENV)/bin:$$cmake:$$PATH"; \
	  cmake -S . -B build/fuzz -G Ninja -DFUSEDOPTIM_SANITIZE=address,undefined -DPython_EXECUTABLE="$$PWD/$(RUN)" \
	    -Dpybind11_DIR="$$($(RUN) -m pybind11 --cmakedir)" \
	    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$$PWD/build/fuzz/package/fusedoptim" && cmake --build build/fuzz
	@cp --parents $$(find fusedoptim -name '*.py') build/fuzz/package/
	@for fuzzer in boundary meddling; do \
	  printf '==> fuzz: tests/fuzz/%s.py $(ARGS)\n' $$fuzzer; \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/fuzz/package \
	    $(RUN) -X faulthandler -W ignore tests/fuzz/$$fuzzer.py --log build/fuzz/seed $(ARGS) || \
	    { echo >&2 "ended by case $$(<build/fuzz/seed): make fuzz ARGS=\"--cases 1 --seed $$(<build/fuzz/seed)\""; exit 1; }; done

format: $(READY) ## bring all sources into the common format
	@$(RUN) -m ruff check --fix-only $(PY_FILES)
	@$(RUN) -m ruff format $(PY_FILES)
	@$(VENV)/bin/clang-format -i $(CXX_FILES)
	$(call say,'format: done; see git diff')

wheel: $(READY) ## build the source archive and, from it, the wheel into dist/
	$(call say,'wheel: source archive and wheel')
	@rm -rf build/wheel
	@$(RUN) -m build --no-isolation --outdir build/wheel
	$(call say,'wheel: auditwheel finds which Linux it runs on')
	@PATH="$$PWD/$(VENV)/bin:$$PATH" $(RUN) -m auditwheel repair --exclude libgomp.so.1 --wheel-dir dist build/wheel/*.whl
	@cp build/wheel/*.tar.gz dist
	@ls -l dist

test-torch: $(TORCHES:%=test-torch-%) ## test the wheel under each release of torch in TORCHES

$(TORCHES:%=test-torch-%): test-torch-%: .venv-torch-%/.ready wheel
	@$(<D)/bin/python -m pip install -q --force-reinstall --no-deps --no-index --find-links dist fusedoptim
	$(call say,'test-torch: $(<D)/bin/pytest $(UNDER_EACH_TORCH)')
	@mkdir -p build/test-torch && cd build/test-torch && \
	  FUSEDOPTIM_BACKEND=native FUSEDOPTIM_DIRECT=1 OMP_WAIT_POLICY=passive "$(CURDIR)/$(<D)/bin/pytest" -q \
	    -k "not ($(BUT_NOT))" -p no:cacheprovider -c "$(CURDIR)/pyproject.toml" \
	    -o pythonpath="$(CURDIR)/tests/tools" $(UNDER_EACH_TORCH:%="$(CURDIR)/%")

docs: $(DOCS_READY) ## build the documentation site into build/docs, with warnings and dead links as errors
	$(call say,'docs: build/docs/index.html')
	@$(DOCS)/bin/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/docs

clean: ## remove what was built, and leave .venv
	@rm -rf build dist *.egg-info fusedoptim/_C*.so $(BUILT) .pytest_cache .mypy_cache .ruff_cache .benchmarks
	@find . -path './.venv*' -prune -o -name __pycache__ -print0 | xargs -0 rm -rf
	$(call say,'clean: done')

distclean: clean ## remove .venv and the environments beside it as well
	@rm -rf $(VENV) $(TRAINERS) $(PEERS) $(DOCS) .venv-torch-*

# pip is what ensurepip puts there last, so an interrupted creation is repeated.
$(VENV)/bin/pip:
	$(call say,"set-up: environment $(VENV) with $$($(PYTHON) --version)")
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or later is needed: make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo >&2 '$(PYTHON) cannot create environments: it lacks ensurepip.' \
	  'Install it (on Debian and Ubuntu the package python3-venv), or name another Python: make PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(READY): requirements-dev.txt $(VENV)/bin/pip
	$(call say,'set-up: requirements-dev.txt (with a torch, so the first time takes minutes)')
	@$(PIP) install -r requirements-dev.txt
	@touch $@

# Environments on top of the other, so that its torch and the package as built there are seen and not installed again.
.venv-%/.ready: requirements-%.txt $(READY)
	$(call say,'set-up: $< into $(@D) (half a minute)')
	@$(RUN) -m venv --clear --without-pip $(@D)
	@$(RUN) -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  >"$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	@$(@D)/bin/python -m pip --disable-pip-version-check install -r $<
	@touch $@

.venv-torch-%/.ready: $(VENV)/bin/pip
	$(call say,'set-up: torch $* into $(@D)')
	@$(RUN) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install torch==$* numpy pytest pytest-tqdm
	@touch $@

$(BUILT): $(READY) $(SETTING) $(NATIVE) pyproject.toml
	$(call say,'build: the native module (about 4 CPU minutes from scratch; about 12 with nvcc, whose part FUSEDOPTIM_CUDA=0 skips)')
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

# Rewritten only when it changes: then what was built with other settings is built again.
$(SETTING): $(READY) FORCE
	@now="$$(env | grep -E '^$(SETTINGS)' | sort)"; \
	  [[ -f $@ && "$$(<$@)" == "$$now" ]] || echo "$$now" >$@
