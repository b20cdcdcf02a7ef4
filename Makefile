# Two commands do everything from a fresh clone: `make demo` and `make test`.
# They need Python 3.11 or newer and a network; all they install goes into .venv here, in the versions of constraints.txt, which
# continuous integration runs with. LATEST=1 and OLDEST=1 take the newest that there are and the oldest that are promised instead,
# in environments of their own: make test LATEST=1.

PYTHON      ?= python3
FLAVOUR     := $(if $(LATEST),-latest,$(if $(OLDEST),-oldest))
CONSTRAINTS := $(if $(LATEST),,constraints$(FLAVOUR).txt)
VENV        := .venv$(FLAVOUR)
BIN         := $(VENV)/bin
READY       := $(VENV)/.installed
INSTALL     := $(BIN)/python -m pip install $(addprefix --constraint ,$(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all sanitize docs wheel wheels bench bench-gpu gpu kernel-report kernel-counts lint clean

help:           ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

venv: $(READY)  ## make .venv with everything the project needs, in the versions of constraints.txt (LATEST=1, OLDEST=1: others)

# Made anew whenever what is to be installed or built has changed. What builds need comes first, so that each builds here and not
# in an environment of its own with another torch.
$(READY): pyproject.toml setup.py CMakeLists.txt $(CONSTRAINTS) $(shell find csrc -type f 2>/dev/null)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --quiet --upgrade pip
	$(INSTALL) setuptools wheel cmake ninja pybind11 torch torchvision
	SAM2_BUILD_CUDA=0 $(INSTALL) --no-build-isolation --editable ".[train,bench,sam2,dev]"
	@touch $@

demo: $(READY)  ## the main job in miniature, two to four minutes; writes demo-report/report.html
	$(BIN)/lgf demo $(ARGS)

# Several processes, each with whole files: what a file builds for its tests is built once. Their order is that of tests/conftest.py.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(READY)  ## the tests; ARGS="-k name" picks some
	$(BIN)/python $(PYTEST) -m "not slow" $(ARGS)

test-all: $(READY) ## these and the long ones: every product of options, every mistake that a model of a GPU must notice
	$(BIN)/python $(PYTEST) $(ARGS)

# The native module once more with the sanitizers, in a copy of the package of its own.
SANE := build/sanitize
# The tests of each family that has kernels, but for those that read what compilers make, count, or repeat the same accesses.
SANE_TESTS := $(sort $(foreach device,cpu cuda,$(patsubst csrc/$(device)/%/bindings.cpp,tests/%,$(wildcard csrc/$(device)/*/bindings.cpp))))
sanitize: $(READY)  ## the native kernels under AddressSanitizer and UndefinedBehaviorSanitizer (ARGS="-m ''": the long tests too)
	rm -rf $(SANE)/site && mkdir -p $(SANE)/site
	cp -r lgf_kernels $(SANE)/site/ && rm -f $(SANE)/site/lgf_kernels/*.so
	$(BIN)/cmake -S . -B $(SANE)/cmake -G Ninja -DLGF_SANITIZE=ON -DLGF_OUTPUT_DIR=$(CURDIR)/$(SANE)/site/lgf_kernels \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
		-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) \
		-DLGF_VERSION=$$($(BIN)/python -c 'import lgf_kernels; print(lgf_kernels.__version__)') > /dev/null
	$(BIN)/cmake --build $(SANE)/cmake
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 \
		PYTHONPATH=$(SANE)/site $(BIN)/python -P $(PYTEST) $(SANE_TESTS) tests/models/cuda \
		-k "(native or test_cpu or cuda) and not (test_operators or compiled or ptx or counts or change_no_bit or far_apart or mistake)" -m "not slow" -p no:cacheprovider $(ARGS)

# The site's tools have a folder of their own, and borrow torch and the rest from the other one.
DOCS := .venv-docs
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
$(DOCS)/.installed: $(READY)
	$(BIN)/python -m venv --clear $(DOCS)
	$(BIN)/python $(PURELIB) > "$$($(DOCS)/bin/python $(PURELIB))/borrowed.pth"
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt "lgf-kernels[docs]"
	@touch $@

docs: $(DOCS)/.installed  ## the documentation site, build/docs/index.html; warnings and links that lead nowhere are errors
	PYTHONPATH=.:python $(DOCS)/bin/python -P -m sphinx --fail-on-warning --keep-going --quiet --fresh-env -b html docs build/docs

# auditwheel gives the wheel the oldest manylinux tag that its symbols allow. OpenMP is left to torch: a copy would be a second
# pool of threads.
wheel: $(READY) ## dist/: an sdist, and a wheel for this Python and other machines (CUDA=1: with the CUDA module)
	rm -rf build/wheel
	LGF_NATIVE=on LGF_CUDA=$(if $(CUDA),on,off) CMAKE_ARGS="-DLGF_OLD_GLIBC=ON $(CMAKE_ARGS)" \
		$(BIN)/python -m build --outdir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude libgomp.so.1 --wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist/

wheels: $(READY) ## dist/: a wheel for every Python, by cibuildwheel, which needs docker
	$(INSTALL) --quiet cibuildwheel==4.3.5
	$(BIN)/python -m cibuildwheel --output-dir dist

bench: $(READY) ## time the operators on this machine's CPU, under pytest-benchmark
	$(BIN)/python -m pytest benchmarks $(ARGS)

bench-gpu: $(READY) ## the same on its GPU
	$(BIN)/python -m pytest benchmarks --device cuda $(ARGS)

gpu: $(READY)   ## all that a GPU is needed for, in nine minutes; ARGS="--out DIR --minutes 9", again to go on
	$(BIN)/python benchmarks/tools/gpu_session.py $(ARGS)

kernel-report: $(READY) ## what the GPU kernels compile to, no GPU needed (minutes; ARGS="--arch 90" for a part)
	$(BIN)/python benchmarks/tools/kernel_report.py $(ARGS)

kernel-counts: $(READY) ## how much work the kernels do, and how long a GPU would need at least
	$(BIN)/python benchmarks/tools/kernel_counts.py $(ARGS)

lint: $(READY)  ## style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:          ## remove builds and .venv
	rm -rf .venv .venv-latest .venv-oldest .venv-docs build dist *.egg-info lgf_kernels/*.so
