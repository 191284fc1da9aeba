# make demo   trains, exports and serves two networks in front of you   (ARGS=--once: ends by itself)
# make test   the whole test suite
# make check  lint, format, types, and that the stubs are what proto/ gives
# make networks  docs/networks.md anew: every architecture exported, counted and timed (ten minutes)
# make perf   docs/benchmarks.md and the table in docs/performance.md anew: what serving costs beside what it could cost, and what each
#             optimisation brings (about 40 minutes, on a quiet machine; ARGS="--only P3", "--only ablations": one part)
# make perf-gpu  docs/benchmarks-gpu.md: the same on a GPU beside onnxruntime alone; exit code 2 where there is none   (RUNTIME=cuda)
# make image  the serving image, measured; with docker, or without any container engine   (RUNTIME=cuda: for a GPU)

PYTHON ?= python3
RUNTIME ?= cpu# cuda: onnxruntime-gpu with its CUDA and cuDNN packages
BIN := .venv/bin
STAMP := .venv/.installed-$(RUNTIME)

# onnxruntime sends usage data from Linux unless told not to; `convoy` says so itself.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: demo test soak perf perf-gpu check lint types stubs stubs-check format image install clean networks structure
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Convoy needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python lacks venv: apt-get install python3-venv" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (about two minutes and 2 GB the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(RUNTIME),train,bench,dev]'
	@rm -f .venv/.installed-*; touch $@

demo: $(STAMP)
	@$(BIN)/python -m tools.demo $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest $(ARGS)

# What takes too long for every change.
soak: $(STAMP)
	@$(BIN)/python -m pytest -m soak $(ARGS)

check: lint types stubs-check

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The Open Inference Protocol's messages live in a descriptor pool of their own: two generated files that both declare
# `inference.*`, ours and a client's, could not be imported into one process otherwise.
STUBS ?= service/pb
stubs: $(STAMP)
	@mkdir -p $(STUBS)
	@$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=$(STUBS) --pyi_out=$(STUBS) proto/convoy/v1/vision.proto proto/inference.proto
	@sed -i 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' $(STUBS)/inference_pb2.py

stubs-check: $(STAMP)
	@rm -rf .cache/stubs && $(MAKE) --no-print-directory stubs STUBS=.cache/stubs
	@diff -r -x __init__.py -x __pycache__ .cache/stubs service/pb || { echo "service/pb is not what proto/ gives: run 'make stubs' and commit" >&2; exit 1; }
	@echo "service/pb is what proto/ gives"

structure: $(STAMP)
	@$(BIN)/python -m tools.structure $(ARGS)

networks: $(STAMP)
	@$(BIN)/python -m tools.network_table docs/networks.md

perf: $(STAMP)
	@$(BIN)/python -m tests.performance docs/benchmarks.md $(ARGS)

perf-gpu: $(STAMP)
	@$(BIN)/python -m tests.performance.gpu docs/benchmarks-gpu.md $(ARGS)

image:
	@RUNTIME=$(RUNTIME) deploy/image.sh build

clean:
	rm -rf .venv .cache build dist *.egg-info
