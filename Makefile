# `make` prints the targets. Each sets up on this machine what it needs; that takes no time where nothing is missing.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Ansible insists on UTF-8.
export LC_ALL := C.UTF-8

CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/slowjobs
# site first: it begins with --check, on hosts that have nothing yet.
SCENARIO ?= site nsqd worker
MINUTES ?= 10
# Named, or molecule would look for it at the top of a git repository.
MOLECULE := molecule --base-config $(CURDIR)/.config/molecule/config.yml
PLAYBOOKS := site.yml $(wildcard playbooks/*.yml)
# Python beside the glue.
SCRIPTS := bench inventory molecule plugins tools

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help up deploy demo down lint lint-yaml lint-ansible lint-shell lint-python check test test-unit test-integration \
	test-acceptance chaos fuzz molecule bench control artefacts

help: ## Print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## Make the six local hosts, or start them again
	@tools/bootstrap.sh control hosts
	@ansible-playbook playbooks/local-up.yml

deploy: artefacts ## Install everything on the inventory's hosts: ansible-playbook site.yml
	@ansible-playbook site.yml

demo: up deploy ## From nothing to results: hosts, deployment, thousands of real requests, a table
	@ansible-playbook playbooks/local-demo.yml
	@python tools/demo

down: control ## Take the local hosts away with all that is on them; image and archives stay cached
	@ansible-playbook playbooks/local-down.yml
	@echo "Kept for the next time: the hosts' image in podman (localhost/slowjobs-host) and the cache folder $(CACHE)"

lint: lint-yaml lint-ansible lint-shell lint-python ## Style, types and syntax of everything

lint-yaml: control
	yamllint --strict --config-file .config/yamllint.yml .

lint-ansible: control
	for inventory in local example; do ansible-playbook --syntax-check --inventory inventory/$$inventory/hosts.yml $(PLAYBOOKS) || exit; done
	ansible-lint --config-file .config/ansible-lint.yml

lint-shell:
	@tools/bootstrap.sh lint
	shellcheck .ci/run $(wildcard tools/*.sh roles/*/files/*.sh)

lint-python: control
	ruff check glue
	ruff check --config .config/ruff.toml $(SCRIPTS)
	ruff format --check glue
	ruff format --check --config .config/ruff.toml $(SCRIPTS)
	cd glue && mypy

check: lint test-unit ## Lint and unit tests, in under 3 minutes

test: lint ## All that CI runs
	@$(MAKE) --no-print-directory molecule
	@# On hosts of its own: it counts all that is on its way, so nothing of others may be.
	@$(MAKE) --no-print-directory molecule SCENARIO=migrate-nsq-host
	@tools/bootstrap.sh tests
	cd glue && pytest

test-unit: control ## Tests of pure logic, without a network
	cd glue && pytest tests/unit

test-integration: artefacts ## Each service against a real nsqd, Kafka and PostgreSQL
	@tools/bootstrap.sh tests
	cd glue && pytest tests/integration

test-acceptance: artefacts ## The services as processes, killed while work flows, and an account of all requests
	@tools/bootstrap.sh tests
	cd glue && pytest tests/acceptance

chaos: artefacts ## Kill, freeze and cut off all there is while work flows, and account for it; SEED=7 ROUNDS=20 FAULTS=nsqd-killed HOSTS=1
	@tools/bootstrap.sh $(if $(HOSTS),hosts,tests)
	@PYTHONPATH=glue/tests python -m chaos $(if $(HOSTS),--hosts) $(if $(SEED),--seed $(SEED)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(FAULTS),--faults $(FAULTS)) $(if $(REQUESTS),--requests $(REQUESTS))

fuzz: control ## Feed what nobody expects to all that reads what others wrote; MINUTES=10
	cd glue && PYTHONPATH=tests python -m fuzz --minutes $(MINUTES)

molecule: artefacts ## Roles and site on test hosts of their own; SCENARIO=nsqd for one
	@tools/bootstrap.sh hosts
	@# What a run that was ended left behind.
	@$(MOLECULE) destroy
	@$(MOLECULE) test --no-command-borders $(addprefix --scenario-name=,$(SCENARIO))

bench: artefacts ## What a task and an idle slot cost here, and with Celery and RQ; the persister beside COPY, the bridge beside MPUB (about 9 minutes)
	@tools/bootstrap.sh bench tests
	@PYTHONPATH=glue/tests $(CACHE)/bench/bin/python bench/run.py
	@PYTHONPATH=glue/tests python bench/persister.py
	@PYTHONPATH=glue/tests python bench/bridge.py

control:
	@tools/bootstrap.sh control

artefacts: control
	@tools/bootstrap.sh artefacts
	@ansible-playbook playbooks/artefacts.yml
