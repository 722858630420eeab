PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SAYING := $(PYTHON) qfpass/waits.py
# For `make canaries`: the one before the pinned; any other with TRANSFORMERS=...
TRANSFORMERS := 5.23.0

# For `make triton`: the one that the pinned torch asks for.
TRITON := 3.7.1

.PHONY: help venv weights demo test test-slow test-qwen census canaries plain matrix bench bench-kvpress bench-llama-cpp check-gpu quality sessions fuzz \
	fuzz-server bench-serving lm-eval triton docs recipes lint clean \
	formats

help:
	@echo "make demo   set everything up, read 8,000 tokens in an eighth of the cache (real weights)"
	@echo "make test   set everything up, run the tests"
	@echo "make test-slow  run the tests that take long and seldom fail"
	@echo "make test-qwen  fetch Qwen2.5-Coder-0.5B (490 MB), run the tests of real weights on it (ten minutes)"
	@echo "make census compile and compare every family of decoders of transformers, write docs/models.md (an hour)"
	@echo "make canaries  run the tests of what is private in transformers on another one of its versions"
	@echo "make plain  run the equality tests with every optimisation off"
	@echo "make matrix run tests and real weights on each pair of torch and transformers, write docs/versions.md (hours)"
	@echo "make bench  time and memory beside transformers, in float32 (real weights, half an hour); results in build/bench"
	@echo "make bench-kvpress, make bench-llama-cpp  the same of these, in environments of their own"
	@echo "make bench-serving  conversations over long documents, beside transformers serve (real weights, long)"
	@echo "make check-gpu  on a GPU: its tests, then steps, prompts and memory of an 8B shape (eight minutes); results in build/gpu"
	@echo "make quality  train filters and measure what they keep of held-out text (real weights, long)"
	@echo "make sessions  what batches, chats and forks cost (real weights, half an hour)"
	@echo "make fuzz   1,000 interleavings of sessions and 5,000 sequences of fuzzed calls (half an hour)"
	@echo "make fuzz-server  10,000 good, malformed and broken-off requests to a server with little memory (a quarter of an hour)"
	@echo "make lm-eval  test lm-evaluation-harness on a compiled model, in an environment of its own"
	@echo "make formats  test weights of other libraries and PEFT's adapters, in an environment of their own"
	@echo "make triton  test the kernels for GPUs by Triton's interpreter and compiler, in an environment of their own"
	@echo "make docs   build the site into build/docs; its tables and pictures from the records"
	@echo "make recipes  run every recipe on real weights, write what it prints into its page"
	@echo "make lint   ruff and mypy"
	@echo "make clean  remove the virtual environment and caches"

venv: $(INSTALLED)

# torch first and pinned, so that no other package pulls a build of its own choice.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(SAYING) "upgrading pip" $(BIN)/pip install --quiet --upgrade pip
	$(SAYING) "installing torch" $(BIN)/pip install --quiet -c constraints.txt torch
	$(SAYING) "installing qfpass and what tests need" $(BIN)/pip install --quiet -c constraints.txt -e '.[examples,dev]'
	touch $@

weights: venv
	$(BIN)/python examples/fetch_weights.py

demo: weights
	$(BIN)/python examples/quickstart.py

test: weights
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not qwen and not slow"

test-slow: venv
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow

test-qwen: venv
	$(BIN)/python examples/fetch_weights.py --qwen
	$(BIN)/python -m pytest -q -m qwen

# Some families or columns with CENSUS="llama opt --column drafts", what the record lacks with CENSUS=--missing.
census: venv
	$(BIN)/qfpass census --configs docs/tiny_models.json --record docs/models.json --out docs/models.md $(CENSUS)

# Another transformers, without its dependencies, stands before the environment's own. What is slow without
# torch's private parts doesn't depend on it.
build/transformers-$(TRANSFORMERS): | $(INSTALLED)
	$(BIN)/pip install --quiet --no-deps --target $@ transformers==$(TRANSFORMERS)

canaries: venv build/transformers-$(TRANSFORMERS)
	PYTHONPATH=build/transformers-$(TRANSFORMERS) $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/upstream \
		--ignore tests/upstream/test_without.py

plain: venv
	QFPASS_OFF=all $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/test_families.py tests/test_eviction.py \
		tests/test_inductor.py tests/model/test_continuation.py

# Environments are deleted after their run; KEEP=1 leaves them. One pair with MATRIX="--pair ...", see --help.
matrix: weights
	$(BIN)/python benchmarks/versions/run.py $(MATRIX)

# More options of `qfpass bench` with BENCH="--quick --dtype bfloat16".
bench: weights
	$(BIN)/python benchmarks/smollm2.py --out build/bench $(BENCH)

# kvpress wants an older transformers, and torch as it is here.
bench-kvpress: weights
	$(PYTHON) -m venv build/kvpress
	build/kvpress/bin/pip install --quiet -c constraints.txt torch
	build/kvpress/bin/pip install --quiet -r benchmarks/kvpress/requirements.txt
	build/kvpress/bin/python benchmarks/kvpress/run.py $$($(BIN)/python examples/assets.py) build/bench/kvpress.json

# llama.cpp is compiled for this processor, which takes some twelve minutes on two cores.
bench-llama-cpp: venv
	$(PYTHON) -m venv build/llama-cpp
	build/llama-cpp/bin/pip install --quiet -r benchmarks/llama_cpp/requirements.txt
	build/llama-cpp/bin/python benchmarks/llama_cpp/run.py build/bench/llama_cpp.json

# More options with SERVING="--turns 4 --start llama.cpp --gguf ...".
bench-serving: weights
	set -- $$($(BIN)/python examples/assets.py); \
		$(BIN)/python benchmarks/serving.py $$1 $$3 --start qfpass --start transformers $(SERVING)

# With GPU=--dry-run on a processor, with a tiny model.
check-gpu: venv
	$(BIN)/python benchmarks/check_gpu.py build/gpu $(GPU)

quality: weights
	$(BIN)/python benchmarks/quality.py build/quality

sessions: weights
	$(BIN)/python benchmarks/sessions.py

fuzz: venv
	QFPASS_EXAMPLES=1000 $(BIN)/python -m pytest -q tests/sessions/test_interleaving.py tests/model/test_continuation.py

fuzz-server: venv
	QFPASS_REQUESTS=10000 $(BIN)/python -m pytest -q -s tests/serving/server/test_crowd.py

# An environment in the folder $(1) that also sees the project's packages, and qfpass as it is installed there.
define beside
$(PYTHON) -m venv $(1)
$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" > $(1)/ours.pth
mv $(1)/ours.pth "$$($(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/"
endef

# Its many dependencies stay out of the project's environment.
lm-eval: venv
	$(call beside,build/lm-eval)
	build/lm-eval/bin/pip install --quiet -c constraints.txt lm-eval
	build/lm-eval/bin/python -m pytest -q tests/model/test_integrations.py

# Their packages ask for another torch or many others, so each is named here and takes none along.
formats: venv
	$(call beside,build/formats)
	build/formats/bin/pip install --quiet --no-deps accelerate bitsandbytes==0.50.2 compressed-tensors==0.20.1 loguru \
		optimum-quanto==0.2.7 peft==0.21.2
	build/formats/bin/pip install --quiet --no-deps 'setuptools>=77' wheel datasets defuser device-smi dill logbar \
		multiprocess optimum pandas pyarrow pypcre threadpoolctl tokenicer xxhash
	build/formats/bin/pip install --quiet --no-deps --no-build-isolation gptqmodel==7.7.0
	build/formats/bin/python -m pytest -q tests/capture/test_library_linears.py \
		tests/model/test_adapters.py tests/upstream/test_quanto.py

# Of its own, since it is 700 MB, and since the interpreter is chosen where Triton is imported, for a whole process.
# The second call is without the interpreter: what Triton compiles, and Inductor's C++ beside it.
triton: venv
	$(call beside,build/triton)
	build/triton/bin/pip install --quiet triton==$(TRITON)
	TRITON_INTERPRET=1 build/triton/bin/python -m pytest -q tests/kernels/cuda/test_step_attention.py
	build/triton/bin/python -m pytest -q tests/kernels/cuda/test_step_compiles.py tests/kernels/test_compile.py

docs: venv
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/pictures.py
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs
	@echo "open build/docs/index.html"

# Some of them with RECIPES="chat batch". What some need beyond qfpass stays in an environment of its own.
recipes: weights
	$(call beside,build/recipes)
	build/recipes/bin/pip install --quiet -c constraints.txt langchain-huggingface lm-eval 'ray[serve]' smolagents
	build/recipes/bin/python examples/recipes.py $(RECIPES)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
