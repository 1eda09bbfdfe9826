# Two commands matter: `make serve` and `make test`. Both do all set-up first.
# Needed on the machine: Python 3.11+, make, cc. Everything else comes from the lock files.

PYTHON ?= python3
HOST ?= 127.0.0.1
ARGS ?=
VENV := .venv
TRITON_VENV := .venv-triton
CLIENTS_VENV := .venv-clients
GPU_VENV := .venv-gpu
UV := .tools/bin/uv
RUN := $(VENV)/bin

export UV_PYTHON_DOWNLOADS := never
export PATH := $(CURDIR)/.tools/bin:$(PATH)

.PHONY: install serve compiled test test-compiled differential fuzz perf-analyzer proto kserve schemathesis check format bench bench-overload bench-frontend bench-core bench-drift bench-streams bench-live study gpu-check clean fuzz-h2 bench-connections

install: $(VENV)/.ready $(TRITON_VENV)/.ready .run/.prepared

serve: install
	@exec $(RUN)/tritonsched serve --host $(HOST) $(ARGS)

check: $(VENV)/.ready
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/lint-imports
	$(RUN)/mypy

# The wheel of a compiled build (pyproject.toml: hooks.mypyc), unpacked; COMPILED runs what it holds. It is
# made from the sdist: in a checkout the compiler would leave its files beside the sources they hide.
COMPILED := PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/.run/compiled:$(CURDIR)

compiled: .run/compiled/.ready

.run/compiled/.ready: $(UV) $(VENV)/.ready pyproject.toml $(shell find tritonsched -name '*.py')
	@rm -rf .run/compiled && mkdir -p .run/compiled
	HATCH_BUILD_HOOK_ENABLE_MYPYC=1 $(UV) build --python $(VENV)/bin/python --out-dir .run/compiled/dist
	$(PYTHON) -m zipfile -e .run/compiled/dist/*.whl .run/compiled
	@$(COMPILED) $(RUN)/python -c "from tritonsched.doctor import is_compiled; assert is_compiled()"
	@touch $@

test: install
	$(RUN)/pytest -n 2 --dist loadfile --cov --cov-report=term $(ARGS)

# What asks the compiled build from outside; a test that replaces a method of a compiled object cannot.
test-compiled: install compiled
	$(COMPILED) $(RUN)/python -m pytest -n 2 --dist loadfile --import-mode=append tests/integration tests/differential tests/unit/test_twin.py tests/unit/core/test_scheduler_properties.py --deselect tests/differential/test_faults.py::test_merged_calls_that_fail_are_answered_by_triton_one_by_one $(ARGS)

format: $(VENV)/.ready
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

differential: install
	$(RUN)/python -m pytest tests/differential --all --repeat 3 $(ARGS)

fuzz: install
	$(RUN)/python -m tests.fuzz $(ARGS)

fuzz-h2: install
	$(RUN)/python -m tests.fuzz.h2 $(ARGS)

kserve: install $(CLIENTS_VENV)/.ready
	$(RUN)/python -m tests.clients.against_kserve $(ARGS)

schemathesis: install $(CLIENTS_VENV)/.ready
	$(RUN)/python -m tests.clients.against_schemathesis $(ARGS)

# NVIDIA's perf_analyzer comes in a wheel, two of its libraries from Debian and from the embedded Triton.
PERF := .tools/perf_analyzer
perf-analyzer: install $(PERF)/perf_analyzer
	$(RUN)/python -m tests.differential.perf_analyzer $(PERF)/perf_analyzer

$(PERF)/perf_analyzer: $(UV)
	@rm -rf $(PERF) && mkdir -p $(PERF)/wheel
	@$(UV) pip install --quiet --no-deps --target $(PERF)/wheel tritonclient==2.50.0
	@cd $(PERF) && apt-get download libb64-0d >/dev/null 2>&1 && dpkg -x libb64-0d_*.deb deb
	@cp $(PERF)/deb/usr/lib/*/libb64.so.0d $(PERF)/
	@ln -sf $(CURDIR)/$(TRITON_VENV)/lib/python3*/site-packages/nvidia_pytriton.libs/libcudart-*.so.12* $(PERF)/libcudart.so.12
	@find $(PERF)/wheel -name perf_analyzer -type f -exec cp {} $(PERF)/perf_analyzer.new \;
	@chmod +x $(PERF)/perf_analyzer.new && mv $(PERF)/perf_analyzer.new $@

# The messages of the reservations' gRPC service, checked in.
proto: $(UV)
	$(UV) run --no-project --with grpcio-tools==1.73.1 python -m grpc_tools.protoc -I tritonsched/frontend --python_out=tritonsched/frontend tritonsched/frontend/reservations.proto

# Every figure of the fast path beside its goal; needs Debian's nghttp2-client.
bench: install compiled
	$(COMPILED) $(RUN)/python -m tests.bench.goals $(ARGS)

bench-overload: install compiled
	$(COMPILED) $(RUN)/python -m tests.bench.overload $(ARGS)

bench-frontend: install compiled
	$(COMPILED) $(RUN)/python -m tests.bench.frontend $(ARGS)

bench-connections: install compiled
	$(COMPILED) $(RUN)/python -m tests.bench.connections $(ARGS)

bench-core: install compiled
	$(COMPILED) $(RUN)/python -m tests.bench.core $(ARGS)

bench-drift: install
	$(RUN)/python -m tests.bench.drift $(ARGS)

bench-streams: install
	$(RUN)/python -m tests.bench.streams
	$(RUN)/python -m tests.bench.admission $(ARGS)

bench-live: install
	$(RUN)/python -m tests.bench.ranking_live
	$(RUN)/python -m tests.bench.cameras_live $(ARGS)

study: install
	$(RUN)/python -m tests.bench.study $(ARGS)

# On a machine with an NVIDIA GPU; elsewhere it says what is missing (python -m tests.gpu: exit 3).
gpu-check: install
	$(RUN)/python -m tests.gpu --first
	@$(MAKE) $(GPU_VENV)/.ready
	$(RUN)/python -m tests.gpu $(ARGS)

clean:
	rm -rf $(VENV) $(TRITON_VENV) $(CLIENTS_VENV) $(GPU_VENV) .tools .run

# -- set-up; each step is skipped while its inputs are older than its stamp ----------------------

$(UV): deploy/tools.txt
	@echo "[1/4] uv, the installer"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "Python 3.11 or 3.12 is needed (the embedded Triton's numpy has no later wheels); this is $$($(PYTHON) --version). Set PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv .tools || \
		{ echo "cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv"; exit 2; }
	@.tools/bin/pip install --quiet --disable-pip-version-check --require-hashes -r deploy/tools.txt
	@touch $@

$(VENV)/.ready: uv.lock pyproject.toml $(UV)
	@echo "[2/4] the product's environment, .venv"
	@$(UV) sync --locked --extra fast --python $(PYTHON)
	@touch $@

$(TRITON_VENV)/.ready: deploy/triton/uv.lock deploy/triton/pyproject.toml $(UV)
	@echo "[3/4] the embedded Triton, .venv-triton (about 75 MB to fetch)"
	@UV_PROJECT_ENVIRONMENT=$(CURDIR)/$(TRITON_VENV) $(UV) sync --locked --project deploy/triton --python $(PYTHON)
	@touch $@

# Only for `make kserve` and `make schemathesis`.
$(CLIENTS_VENV)/.ready: deploy/clients/uv.lock deploy/clients/pyproject.toml $(UV)
	@echo "the clients' environment, .venv-clients (about 60 MB to fetch)"
	@UV_PROJECT_ENVIRONMENT=$(CURDIR)/$(CLIENTS_VENV) $(UV) sync --locked --project deploy/clients --python $(PYTHON)
	@touch $@

# Only for `make gpu-check`.
$(GPU_VENV)/.ready: deploy/gpu/uv.lock deploy/gpu/pyproject.toml $(UV)
	@echo "torch for the GPU check, .venv-gpu (about 3 GB to fetch)"
	@UV_PROJECT_ENVIRONMENT=$(CURDIR)/$(GPU_VENV) $(UV) sync --locked --project deploy/gpu --python $(PYTHON)
	@touch $@

.run/.prepared: $(VENV)/.ready tritonsched/backend/prepare.py
	@echo "[4/4] the models: weights of mlp, the emulated GPU"
	@mkdir -p .run
	@$(RUN)/python -m tritonsched.backend.prepare model_repository .run/build
	@touch $@
