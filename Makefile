# `make` lists what there is. Every target does its own set-up.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_JSON ?= $(VENV)/bench.json
PIP := $(BIN)/python -m pip --disable-pip-version-check
CPP := $(wildcard csrc/*.cpp csrc/*.h tests/cpp/*.cpp tests/cpp/*.h)
SOURCES := deepclust tests setup.py $(wildcard benches experiments docs)

.DEFAULT_GOAL := help
.PHONY: help setup demo test sanitize lint types layers doctest format bench bench-quick docs dist clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make the virtual environment and build the extension (at once, when up to date)
	@:

$(STAMP): pyproject.toml setup.py $(CONSTRAINTS) $(CPP)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and \
		"deepclust needs Python 3.10 or newer; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12" % v[:2])'
	@echo "setup: installing deepclust and its tools into $(VENV) (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq -c $(CONSTRAINTS) -e '.[dev]'
	@$(BIN)/python -c 'import torch, deepclust._C' 2>/dev/null || \
		echo 'setup: no C++ extension (is there a g++?); deepclust works without it, with backend="eager"'
	@touch $@

demo: setup  ## cluster the handwritten digits that scikit-learn carries; writes demo-report/report.html
	@echo "demo: deep clustering of 1,797 handwritten digits"
	@$(BIN)/python -m deepclust fit digits --n-clusters 10 --out demo-report --overwrite \
		--set 'hidden=[256, 512]'

# Processes that run tests side by side: most tests keep one core busy.
TEST_JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(TEST_JOBS) --dist worksteal

PRIMITIVES := assign target_loss frequencies targets kmeans_assign kmeans_candidates kmeans_update kmeans_loss
INTERPRETED := $(PRIMITIVES) contract triton
# What these test is the same without the extension: the primitives' own tests run plain torch with it, too.
NO_KERNELS := $(PRIMITIVES) integers kmeans_batch triton datasets distributed experiments files metrics networks \
	plots report transforms
test: lint types layers doctest docs  ## every check: lint, types, imports, examples, docs, tests with and without the extension
	@$(BIN)/python -c 'import torch, deepclust._C' || \
		{ echo "test: the extension is not built; make test checks it too and needs a C++ compiler"; exit 1; }
	@echo "test: with the extension"
	@$(PYTEST)
	@echo "test: with the extension absent"
	@DEEPCLUST_TEST_BLOCK=deepclust._C $(PYTEST) -k 'not scikit_learn' \
		$(addprefix --ignore=tests/test_,$(addsuffix .py,$(NO_KERNELS)))
	@echo "test: with triton absent: what every primitive promises"
	@DEEPCLUST_TEST_BLOCK=triton $(PYTEST) tests/test_contract.py tests/test_dispatch.py
	@echo "test: the triton kernels, in its interpreter"
	@TRITON_INTERPRET=1 $(PYTEST) -m 'not large' -k triton \
		$(addprefix tests/test_,$(addsuffix .py,$(INTERPRETED)))

# A copy of the tree, so that the extension in use stays what it is. Python was not built for
# sanitizers: their runtime, and the C++ one that it wraps, have to be loaded before all else. A fork
# may leave the lock of the runtime's own allocator held for ever: tests that fork run without it.
SANITIZED := build/sanitize
SANITIZE_ISAS ?= avx512vnni avx2 baseline
SANITIZE_TESTS ?= $(addprefix tests/test_,$(addsuffix .py,assign frequencies targets target_loss \
	kmeans_assign kmeans_batch kmeans_candidates kmeans_update kmeans_loss following integers fuzz \
	fuzz_edges threads snapshot)) tests/test_build.py
sanitize: setup  ## the compiled kernels' tests under the address, undefined and thread sanitizers
	@echo "sanitize: building"
	@rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	@cp -r setup.py pyproject.toml README.md LICENSE csrc deepclust tests $(SANITIZED)
	@rm -f $(SANITIZED)/deepclust/_C*.so
	@cd $(SANITIZED) && DEEPCLUST_SANITIZE=address,undefined $(abspath $(BIN))/python setup.py -q \
		build_ext --inplace >build.log 2>&1 && ls deepclust/_C*.so >/dev/null || { cat build.log; exit 1; }
	@for isa in $(SANITIZE_ISAS); do \
		echo "sanitize: address, undefined: $$isa"; \
		(cd $(SANITIZED) && PYTHONPATH=. DEEPCLUST_ISA=$$isa OMP_WAIT_POLICY=passive \
		ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		$(abspath $(BIN))/python -m pytest -q -x -p no:cacheprovider \
		-k 'not without_a_compiler and not after_fork and not eager and not auto' $(SANITIZE_TESTS) >pytest.log 2>&1 && \
		tail -n 1 pytest.log || { tail -n 100 pytest.log; exit 1; }) || exit 1; \
	done
	@echo "sanitize: threads"
	@sh tests/cpp/threads.sh $(SANITIZED)

lint: setup  ## ruff and clang-format, checking only
	@echo "lint: ruff, clang-format"
	@$(BIN)/ruff check -q $(SOURCES)
	@$(BIN)/ruff format -q --check $(SOURCES)
	@$(BIN)/clang-format --dry-run --Werror $(CPP)

types: setup  ## mypy --strict on the package
	@echo "types: mypy"
	@$(BIN)/mypy --no-error-summary

layers: setup  ## which module may import which
	@echo "layers: import-linter"
	@$(BIN)/lint-imports --no-cache --no-logo >$(VENV)/layers.log 2>&1 || { cat $(VENV)/layers.log; exit 1; }

doctest: setup  ## run the examples of the docstrings
	@echo "doctest: examples"
	@$(BIN)/python -m pytest -q --doctest-modules --ignore-glob='*/_triton*.py' deepclust

format: setup  ## rewrite the sources in the common style
	@$(BIN)/ruff check -q --fix-only $(SOURCES)
	@$(BIN)/ruff format -q $(SOURCES)
	@$(BIN)/clang-format -i $(CPP)

$(VENV)/.bench: $(STAMP)
	@echo "bench: installing the peers"
	@$(PIP) install -qq -c $(CONSTRAINTS) -e '.[bench]'
	@touch $@

bench: $(VENV)/.bench  ## time every primitive and its peers at full size, and print one table
	@echo "bench: full size"
	@THP_MEM_ALLOC_ENABLE=1 $(BIN)/python -m pytest -q benches --benchmark-only \
		--benchmark-columns=median --benchmark-json=$(BENCH_JSON) >$(VENV)/bench.log || { cat $(VENV)/bench.log; exit 1; }
	@$(BIN)/python benches/table.py $(BENCH_JSON)

bench-quick: $(VENV)/.bench  ## the same on small shapes, to see that every bench runs
	@echo "bench: small shapes"
	@DEEPCLUST_BENCH_QUICK=1 $(BIN)/python -m pytest -q benches --benchmark-only \
		--benchmark-columns=median --benchmark-json=$(BENCH_JSON) >$(VENV)/bench.log || { cat $(VENV)/bench.log; exit 1; }
	@$(BIN)/python benches/table.py $(BENCH_JSON)

docs: setup  ## build the documentation into site/; every link and anchor has to lead somewhere
	@echo "docs: building site/"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict >$(VENV)/docs.log 2>&1 || \
		{ grep -v ^INFO $(VENV)/docs.log; exit 1; }  # -q would hide warnings from --strict

$(VENV)/.dist: $(STAMP)
	@echo "dist: installing the tools"
	@$(PIP) install -qq -c $(CONSTRAINTS) -e '.[dist]'
	@touch $@

# Release wheels come from cibuildwheel's old system; this one runs where glibc is as new as here. It is
# built from the sdist, and shares torch's libgomp. auditwheel looks for patchelf on the path.
FRESH := build/fresh
dist: $(VENV)/.dist  ## build the sdist and a wheel into dist/, check them, and try the wheel in a fresh environment
	@echo "dist: building"
	@rm -rf dist build/dist $(FRESH) && mkdir -p dist build
	@$(BIN)/python -m build --outdir build/dist >$(VENV)/dist.log 2>&1 || { cat $(VENV)/dist.log; exit 1; }
	@mv build/dist/*.tar.gz dist
	@PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude libgomp.so.1 -w dist build/dist/*.whl \
		>$(VENV)/dist.log 2>&1 || { cat $(VENV)/dist.log; exit 1; }
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/python tests/dist_contents.py dist/*
	@echo "dist: installing the wheel into a fresh environment"
	@$(PYTHON) -m venv $(FRESH)
	@$(FRESH)/bin/python -m pip install -qq -c $(CONSTRAINTS) dist/*.whl
	@cd $(FRESH) && PYTHONPATH= bin/python $(abspath tests/smoke.py)

clean:  ## remove the virtual environment and everything built
	@rm -rf $(VENV) build dist site demo-report *.egg-info .mypy_cache .pytest_cache .ruff_cache \
		.hypothesis .benchmarks .import_linter_cache deepclust/_C*.so
	@find deepclust tests -name __pycache__ -type d -prune -exec rm -rf {} +
