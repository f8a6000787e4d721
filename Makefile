# make demo   set up, train Zero-DCE for a short run on the built-in pictures, evaluate, enhance
# make test   set up and run the tests
# make setup  only set up: a virtual environment in .venv

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test
CONSTRAINTS ?=
BIN := $(VENV)/bin
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
REQUIREMENTS := $(if $(filter 0,$(GPU)),requirements-cpu.txt,requirements.txt)
DEMO ?= runs/demo

.PHONY: setup demo test lint clean

setup: $(VENV)/.ready-$(EXTRAS)

$(VENV)/.ready-$(EXTRAS): pyproject.toml requirements.txt requirements-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lljax needs Python 3.11 or later; say which one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -r $(REQUIREMENTS) -e '.[$(EXTRAS)]' $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	@touch $@

demo: setup
	$(BIN)/python train.py --config configs/zerodce.py:demo --workdir $(DEMO)
	$(BIN)/python evaluate.py --workdir $(DEMO) --source demo --report $(DEMO)/evaluation
	$(BIN)/python -c "from lljax.data import demo; demo.write('$(DEMO)/pictures', 'test')"
	$(BIN)/lljax enhance $(DEMO)/pictures/low -o $(DEMO)/enhanced --model $(DEMO) --overwrite
	@echo
	@echo "report         $(DEMO)/evaluation/report.html"
	@echo "table          $(DEMO)/evaluation/results.md"
	@echo "contact sheet  $(DEMO)/evaluation/contact_sheet.png   (low | enhanced | reference)"
	@echo "enhanced       $(DEMO)/enhanced/"

# Two at a time: most of the time goes into compiling, which takes one core. The files stay in their
# order: xdist would put the slowest, which have few tests, last.
test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build dist *.egg-info
