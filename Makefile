# For people: install, demo, test. Everything here is one documented call of Snakemake or of a program in scripts/.
SHELL := bash
PYTHON ?= python3
VENV := .venv
RUN := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 "$(CURDIR)/$(VENV)/bin/python"
CORES ?= all
# The project's folder, where config/ and results/ lie: make unlock FOLDER=demo
FOLDER ?= .
# A value as one word of the shell, whatever it holds.
quoted = '$(subst ','\'',$(1))'
SNAKEMAKE = $(RUN) -m snakemake --directory $(call quoted,$(FOLDER))

.PHONY: help install demo test test-full test-long test-random check new curate models try inspect doctor unlock why prune lock generate clean-demo

help: ## say what each target does; FOLDER=demo: for the project in that folder
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: envs/lock.txt envs/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). On Debian: apt-get install python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r envs/uv.txt
	env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/uv pip sync --python $(VENV)/bin/python --require-hashes --compile-bytecode envs/lock.txt
	touch $@

install: $(VENV)/.installed ## make .venv from the hashed lock, with bytecode

demo: $(VENV)/.installed ## draw photos, train three subjects on the CPU, write the report
	cd demo && $(RUN) ../scripts/draw_photos.py --folder data
	$(RUN) -m snakemake --directory demo --cores $(CORES)
	@$(RUN) scripts/show_results.py --folder demo

test: $(VENV)/.installed ## the test suite without the slow rest
	$(RUN) -m pytest tests -n 2 --dist loadfile -m "not slow and not long and not slurm"

test-full: $(VENV)/.installed ## the slow rest: learning on three seeds, edits, kills and faults, surgery, Slurm
	$(RUN) -m pytest tests -n 2 --dist loadfile -m "(slow or slurm) and not long"

test-long: $(VENV)/.installed ## what takes longer still: claims with their spread, costs at scale, large environments, rarer edits
	$(RUN) -m pytest tests -n 2 --dist loadfile -m long

test-random: $(VENV)/.installed ## every property on examples that no run has tried; the others repeat theirs
	$(RUN) -m pytest tests -n 2 --dist loadfile -m "hypothesis and not slow" --hypothesis-profile random

check: $(VENV)/.installed ## formatting, types, lint of code and workflow
	$(VENV)/bin/ruff check scripts tests
	$(VENV)/bin/ruff format --check scripts tests
	$(VENV)/bin/pyright
	$(VENV)/bin/snakefmt --check Snakefile workflow/Snakefile rules
	$(RUN) -m snakemake --lint

new: $(VENV)/.installed ## NAME=jane RECIPE=character PHOTOS=path TRIGGER=j4ne, PRESET=embedded: write config/subjects/jane.yaml
	@$(RUN) scripts/new_subject.py --folder $(call quoted,$(FOLDER)) --name $(call quoted,$(NAME)) --recipe $(call quoted,$(or $(RECIPE),character)) --photos $(call quoted,$(PHOTOS)) --trigger $(call quoted,$(TRIGGER))$(if $(PRESET), --preset $(call quoted,$(PRESET)))

curate: $(VENV)/.installed ## every photo, its fate and reason, mask and caption; stops before anything that needs a GPU
	$(SNAKEMAKE) --cores $(CORES) curate
	@printf 'every photo and its fate  %s\n' $(call quoted,$(FOLDER)/results/report/curate.html)

try: $(VENV)/.installed ## NAME=jane PROMPT="…" SCALE=0.9, BESIDE=film.safetensors METHOD=sum|k-lora|masked WORD=film: draw one image
	@$(RUN) scripts/try_lora.py --folder $(call quoted,$(FOLDER)) --name $(call quoted,$(NAME)) --prompt $(call quoted,$(PROMPT)) --scale "$(or $(SCALE),1.0)" \
	  $(if $(BESIDE),--beside $(call quoted,$(BESIDE)) --method "$(or $(METHOD),sum)" $(if $(WORD),--word $(call quoted,$(WORD))))

models: $(VENV)/.installed ## fetch and verify the configured models, so that runs can be offline
	$(SNAKEMAKE) --cores 1 --forcerun fetch_models -- models

inspect: $(VENV)/.installed ## FILE=x.safetensors: say what a LoRA file is, from any trainer
	@$(RUN) scripts/inspect_lora.py $(call quoted,$(FILE))

doctor: $(VENV)/.installed ## check GPU, memory, disk, weights and configuration
	@$(RUN) scripts/check_machine.py --folder $(call quoted,$(FOLDER))

# No rule is needed to unlock, and the project's own cannot be read while its configuration has a mistake.
unlock: $(VENV)/.installed ## after a crash of Snakemake itself: look for live orphans, then unlock
	@$(RUN) scripts/unlock_results.py --folder $(call quoted,$(FOLDER))
	$(SNAKEMAKE) --snakefile /dev/null --unlock

why: $(VENV)/.installed ## TARGET=jane: what the next run would do, and which edit is the reason; before running
	@cd $(call quoted,$(FOLDER)) && $(RUN) "$(CURDIR)/scripts/explain_run.py" $(TARGET)

prune: $(VENV)/.installed ## say what of the store no result needs any more; YES=1 removes it
	@cd $(call quoted,$(FOLDER)) && $(RUN) "$(CURDIR)/scripts/prune_store.py" $(if $(YES),--yes)

lock: ## resolve the dependencies anew into envs/lock.txt
	$(VENV)/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --all-extras --group dev -o envs/lock.txt pyproject.toml

generate: $(VENV)/.installed ## write config/schema.json and config/README.md from the settings models
	@$(RUN) scripts/generate_docs.py

clean-demo: ## remove the demo's data and results
	rm -rf demo/data demo/results demo/models demo/.snakemake
