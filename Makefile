# make demo   trains, exports and serves two networks in front of you   (ARGS=--once: ends by itself)
# make test   the whole test suite, in two processes   (ARGS="-n 0 tests/service": in one, a part of it)
# make check  lint, format, types, and that the stubs are what proto/ gives
# make coverage  fails where a branch of the scheduler, the slots or the admission runs in none of their tests
# make mutation  which changes of these modules their tests do not find (an hour; ARGS="frontend/routing": one module)
# make networks  docs/networks.md anew: every architecture exported, counted and timed (ten minutes)
# make soak   docs/reliability.md anew: faults and attacks, counted over all runs, for an hour   (ARGS="--seconds 28800", "--only R2")
# make perf   docs/benchmarks.md and the table in docs/performance.md anew: what serving costs beside what it could cost, and what each
#             optimisation brings (about 40 minutes, on a quiet machine; ARGS="--only P3", "--only ablations": one part)
# make perf-gpu  docs/benchmarks-gpu.md: the same on a GPU beside onnxruntime alone; exit code 2 where there is none   (RUNTIME=cuda)
# make reference  docs/reference/ anew: settings, metrics, errors, commands, the client and the APIs, from the source
# make dashboards  deploy/grafana/dashboards and deploy/prometheus/rules anew, from the table of metrics
# make docs   the documentation site in .cache/site, from docs/ and README.md; a dead link fails
# make image  the serving image, measured; with docker, or without any container engine   (RUNTIME=cuda: for a GPU)

PYTHON ?= python3
RUNTIME ?= cpu# cuda: onnxruntime-gpu with its CUDA and cuDNN packages
BIN := .venv/bin
STAMP := .venv/.installed-$(RUNTIME)
DEV_STAMP := $(STAMP)-dev

# onnxruntime sends usage data from Linux unless told not to; `convoy` says so itself.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: demo test soak coverage mutation perf perf-gpu check lint types stubs stubs-check format image install clean networks structure docs reference dashboards
.DELETE_ON_ERROR:

install: $(DEV_STAMP)

# What trains, exports, serves and measures: all that the demo needs.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Convoy needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python lacks venv: apt-get install python3-venv" >&2; exit 2; }
	@echo "installing into .venv (one to three minutes and 2 GB the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m tools.install --editable '.[$(RUNTIME),train,bench]'
	@rm -f .venv/.installed-*; touch $@

# What tests and checks it, on top.
$(DEV_STAMP): $(STAMP)
	@echo "installing what the tests and checks need into .venv"
	@$(BIN)/python -m tools.install --editable '.[$(RUNTIME),train,bench,dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m tools.demo $(ARGS)

test: $(DEV_STAMP)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Every branch of the scheduler, the slots and the admission runs in their own tests.
coverage: $(DEV_STAMP)
	@$(BIN)/python -m tests.coverage

# atheris has wheels for few versions of Python. Without it, its targets get seeded mutations alone.
soak: $(DEV_STAMP)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --editable '.[fuzz]' 2>/dev/null || true
	@$(BIN)/python -m tests.reliability docs/reliability.md $(ARGS)

# How many changes of the scheduler, the slots and the admission the tests find   (ARGS="frontend/routing ipc/slots")
mutation: $(DEV_STAMP)
	@$(BIN)/python -m tests.mutation $(ARGS)

check: lint types stubs-check

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV_STAMP)
	$(BIN)/mypy

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The Open Inference Protocol's messages live in a descriptor pool of their own: two generated files that both declare
# `inference.*`, ours and a client's, could not be imported into one process otherwise.
STUBS ?= service/pb
stubs: $(DEV_STAMP)
	@mkdir -p $(STUBS)
	@$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=$(STUBS) --pyi_out=$(STUBS) proto/convoy/v1/vision.proto proto/inference.proto
	@sed -i 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' $(STUBS)/inference_pb2.py

stubs-check: $(DEV_STAMP)
	@rm -rf .cache/stubs && $(MAKE) --no-print-directory stubs STUBS=.cache/stubs
	@diff -r -x __init__.py -x __pycache__ .cache/stubs service/pb || { echo "service/pb is not what proto/ gives: run 'make stubs' and commit" >&2; exit 1; }
	@echo "service/pb is what proto/ gives"

structure: $(DEV_STAMP)
	@$(BIN)/python -m tools.structure $(ARGS)

networks: $(DEV_STAMP)
	@$(BIN)/python -m tools.network_table docs/networks.md

reference: $(DEV_STAMP)
	@$(BIN)/python -m tools.reference

dashboards: $(DEV_STAMP)
	@$(BIN)/python -m tools.watching.files

# Its generator is installed when the site is first built.
docs: $(DEV_STAMP)
	@$(BIN)/python -c 'import zensical' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@$(BIN)/python -m tools.site

perf: $(DEV_STAMP)
	@$(BIN)/python -m tests.performance docs/benchmarks.md $(ARGS)

perf-gpu: $(DEV_STAMP)
	@$(BIN)/python -m tests.performance.gpu docs/benchmarks-gpu.md $(ARGS)

image:
	@RUNTIME=$(RUNTIME) deploy/image.sh build

clean:
	rm -rf .venv .cache build dist *.egg-info
