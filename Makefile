IMAGE ?= events-sdk-python
PYTHON ?= python3
PACKAGE := hightouch
VENV := .venv/bin/python
# The checkout takes the place of the image's copy, so that a rebuild is needed only
# when a dependency changed. As the caller, so that no file ends up owned by root.
DOCKER := docker run --rm --user "$$(id -u):$$(id -g)" --env HOME=/tmp \
	--volume "$(CURDIR)":/app $(IMAGE)
DOCKER_TTY := $(subst --rm,--rm --interactive --tty,$(DOCKER))

.DEFAULT_GOAL := help
.PHONY: help build test repl shell format clean check demo

help: ## Show this text
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

build: ## Build the Docker image that the next four use
	docker build --tag $(IMAGE) .

test: build ## Run the tests in Docker
	$(DOCKER) python -m unittest hightouch.htevents.test.all

repl: build ## Open a Python prompt in Docker, with the SDK imported
	$(DOCKER_TTY) python -i -c 'import hightouch.htevents as htevents'

shell: build ## Open a shell in Docker
	$(DOCKER_TTY) bash

format: build ## Format the code in Docker
	$(DOCKER) python -m ruff check --fix $(PACKAGE)/
	$(DOCKER) python -m ruff format $(PACKAGE)/

clean: ## Remove what was built: image, .venv, distributions, caches
	-docker image rm --force $(IMAGE)
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .ruff_cache
	find hightouch -name __pycache__ -type d -prune -exec rm -rf {} +

check: .venv/installed ## Check everything that CI checks, without Docker, in .venv
	$(VENV) -m ruff check $(PACKAGE)/
	$(VENV) -m ruff format --diff $(PACKAGE)/
	$(VENV) -m mypy
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/zizmor --offline --no-progress .github/workflows/
	$(VENV) -m unittest hightouch.htevents.test.all
	rm -rf dist
	$(VENV) -m build
	$(VENV) -m twine check --strict dist/*

demo: .venv/installed ## Deliver real events to a local collector, without Docker
	$(VENV) -m hightouch.htevents demo

# Again when a dependency may have changed.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(VENV) -m pip install --quiet --editable '.[dev]'
	@touch $@
