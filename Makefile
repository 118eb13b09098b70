PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.installed

.PHONY: demo docs test test-slow test-plugins gpu-check lint wheel clean

# One installation serves every target; it is made anew when the requirements change.
$(READY): setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(READY)

# Two processes, as a network of this size cannot use the threads of one. Interrupted, it goes on where it was.
demo: $(READY)
	$(BIN)/d2go_fbnetv5.train_net --config-file configs/search_digits.yaml --num-processes 2 --resume OUTPUT_DIR output/demo
	$(BIN)/d2go_fbnetv5.visualize output/demo
	@echo "All of it on one page: output/demo/report.html"

# Networks this small run fastest on one thread, and several threads on a busy machine wait for each other. Two files of
# tests at a time, each by one process from its first test to its last.
TESTS = $(BIN)/python -m pytest -n 2 --dist loadfile

test test-slow: export OMP_NUM_THREADS = 1

test: $(READY)
	$(TESTS) -m "not slow"

test-slow: $(READY)
	$(TESTS) -m slow

# In an interpreter of one's own that has Detectron2 or D2Go: make test-plugins PYTHON=/path/to/python
test-plugins:
	PYTHONPATH=$(CURDIR) $(PYTHON) -m pytest tests/plugins

# In an interpreter of one's own that has torch with CUDA, and what we require: make gpu-check PYTHON=python3
gpu-check:
	PYTHONPATH=$(CURDIR):$$PYTHONPATH $(PYTHON) benchmarks/gpu.py $(GPU_CHECK)

# The site of docs/, in build/site; whatever is wrong with it is an error.
docs: $(READY)
	$(BIN)/python tools/configuration.py > docs/configuration.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The sdist of what is committed, and of it the wheel: as PyPI takes them, whole, and working where the checkout is not.
wheel:
	rm -rf build dist $(VENV)-wheel $(VENV)-build
	$(PYTHON) -m venv $(VENV)-build
	$(VENV)-build/bin/python -m pip install --quiet build twine
	$(VENV)-build/bin/python -m build --outdir dist . > /dev/null
	$(VENV)-build/bin/python -m twine check --strict dist/*
	$(PYTHON) tests/release/check_wheel.py dist/*.whl
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet dist/*.whl
	bash tests/release/try_wheel.sh $(VENV)-wheel

clean:
	rm -rf $(VENV) $(VENV)-* build dist *.egg-info
