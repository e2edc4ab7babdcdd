# The developer's whole interface, on Debian 12, 13 and Ubuntu 24.04. `sudo make run` needs little; `sudo make setup` brings
# the rest: a compiler, the tests' clients and servers, the checks. requirements/ has the lists of packages.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
CONFIG ?=
SCENARIO ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
ATTACK_ARGS ?=

BIN := .venv/bin
# The pip that a venv would be given a copy of; run as it is, it leaves 16 MB out of what only runs.
PIP = $(or $(lastword $(sort $(wildcard /usr/share/python-wheels/pip-*.whl))),$(error python3-venv is not installed: sudo make setup))/pip
PIP_OPTIONS = --quiet --disable-pip-version-check --no-cache-dir
PIP_INSTALL = $(BIN)/python $(PIP) install $(PIP_OPTIONS)

# Where what setup.py compiles is. Made anew when anything there changes; `make pure` takes it away.
COMPILED := setup.py pyproject.toml requirements/run.txt $(wildcard alg/*.py alg/*/*.py gateway/*/*.py gateway/*/*/*.py)

.PHONY: setup debian-run debian-build debian-test emulated fresh release lock pure run test test-long bench bench-attacks fuzz check lab conformance clean wheelhouse vagrant-test docs dist deb

setup: debian-test .venv/.test .venv/.compiled .venv/.peers

# They ask dpkg: quick, without network and root, when nothing is missing.
debian-run:
	@requirements/debian require requirements/run.deb

debian-build: debian-run
	@requirements/debian install requirements/build.deb

debian-test: debian-build
	@requirements/debian install requirements/test.deb

# What running needs, and no more: wheels of the versions that the lock file names. Python's cache of the
# sources, and of those that they import, is made here, before processes come that may not write it (half of what a
# process's start costs), also where the environment forbids it, as in containers; without what was compiled of an older
# checkout.
.venv/.run: pyproject.toml setup.py requirements/run.txt | debian-run
	[ -x $(BIN)/python ] || $(PYTHON) -m venv --without-pip .venv
	$(PIP_INSTALL) --no-compile --only-binary :all: --require-hashes -r requirements/run.txt
	$(PIP_INSTALL) --no-compile --no-deps --no-build-isolation -e .
	find alg gateway -name '*.so' -delete
	$(BIN)/python -m compileall -q alg gateway iptables
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c 'import gateway.cli.main, gateway.cli.run, gateway.process.worker, \
		gateway.process.broker, gateway.process.packets, gateway.process.portmap, gateway.process.console'
	@touch $@

# What the tests, the checks and the packages need. What is built here is built with what the lock file names, too, and
# kept in .venv/wheels for a package of this release.
.venv/.test: requirements/test.txt requirements/built.txt | debian-build .venv/.run
	$(BIN)/python -m ensurepip >/dev/null
	$(PIP_INSTALL) --require-hashes -r requirements/test.txt
	rm -rf .venv/wheels
	$(BIN)/python $(PIP) wheel $(PIP_OPTIONS) --require-hashes --no-deps --no-build-isolation -w .venv/wheels -r requirements/built.txt
	$(PIP_INSTALL) --no-index --no-deps .venv/wheels/*.whl
	@$(BIN)/python -m compileall -q .venv/lib >/dev/null || true # some packages have files that are no Python of this version
	@touch $@

# Two minutes, where anything has changed; what changes meanwhile is compiled the next time. The sources stay what they
# are, and are what a traceback shows.
.venv/.compiled: $(COMPILED) | .venv/.test
	@mkdir -p build
	@touch build/compile.began
	ALGATE_COMPILE=1 $(BIN)/python -W ignore setup.py -q build_ext --inplace >build/compile.log 2>&1 || { cat build/compile.log >&2; exit 1; }
	$(BIN)/python -m compileall -q alg gateway iptables
	@touch -r build/compile.began $@

.venv/.peers: requirements/peers.deb requirements/peers.txt requirements/debian | debian-test .venv/.test
	requirements/debian unpack $< .venv/peers
	for peer in $$(sed 's/#.*//' requirements/peers.txt); do \
		$(PIP_INSTALL) --only-binary :all: $$peer || echo "$$peer is not there for this machine: its tests are skipped"; \
	done
	@touch $@

# The lock files anew, with the newest versions that pyproject.toml allows; for every Python from 3.11 on.
LOCK = build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --custom-compile-command 'make lock'
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check uv
	$(LOCK) --extra router pyproject.toml requirements/build.in -o requirements/run.txt
	$(LOCK) --extra router --extra dev -c requirements/run.txt pyproject.toml requirements/build.in -o requirements/test.txt
	$(LOCK) --no-deps requirements/built.in -o requirements/built.txt
	$(LOCK) --extra router --extra gssapi --no-emit-package gssapi -c requirements/run.txt pyproject.toml -o requirements/package.txt
	$(LOCK) --extra docs -c requirements/run.txt pyproject.toml requirements/build.in -o requirements/docs.txt

# The sources as they are, for whoever works on them with a debugger: `.venv/bin/python -m pytest ...` runs them then.
pure:
	find alg gateway -name '*.so' -delete
	rm -f .venv/.compiled

# CONFIG=FILE; without it /etc/algate/algate.toml, and without that SOCKS for this machine. What is compiled is compiled
# again when its source has changed; what is not, is not.
run: .venv/.run $(if $(wildcard .venv/.compiled),.venv/.compiled)
	exec $(BIN)/algate run $(if $(CONFIG),-c $(CONFIG))

# As root all of it, network namespaces and slow tests too; else what needs no root. PYTEST_ARGS goes to pytest. Tests wait
# for packets and processes more than they compute: four files at a time (`-n 0`: one, as a debugger needs it).
test: setup
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# What takes minutes: everything that attacks do to others, one client at the sizes of the reports, the whole corpus of
# SIP messages of the field over the wire.
test-long: setup
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

# All peers, several rounds, into docs/benchmarks.md; under 20 minutes. BENCH_ROUNDS=1 BENCH_SECONDS=1 is quick.
bench: setup
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

# What attacks do to everybody else, into docs/threat-model.md; about twelve minutes. ATTACK_ARGS goes to it.
bench-attacks: setup
	$(BIN)/python -m tests.bench.attacks --write $(ATTACK_ARGS)

# Random inputs for all that reads what strangers send, for FUZZ_SECONDS; what is found is kept in tests/fuzz/corpus.
FUZZ_SECONDS ?= 14400
fuzz: setup
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/python -m pytest -q tests/test_rooms.py

# A shell of a client behind the gateway; SCENARIO=ftp-active runs vagrant/scenarios/ftp-active.sh there instead.
lab: setup
	$(BIN)/python -m tests.lab $(SCENARIO)

# Wheels for a router without a network, as the Vagrant lab's: algate and all that it needs.
wheelhouse: setup
	rm -rf vagrant/wheelhouse build
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir vagrant/wheelhouse '.[router]'
	rm vagrant/wheelhouse/algate-*.whl
	ALGATE_COMPILE=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir vagrant/wheelhouse .
	@ls vagrant/wheelhouse

# The Vagrant lab, brought up, and every scenario in it. See vagrant/README.md.
vagrant-test: wheelhouse
	cd vagrant && vagrant up --no-parallel && ./test

# FTP with us, with the kernel's helper and with neither, and real clients with real servers: the tables of docs/protocols/ftp.md.
conformance: setup
	$(BIN)/python -m tests.conformance.ftp
	$(BIN)/python -m tests.conformance.sip
	$(BIN)/python -m tests.conformance.sip_field
	$(BIN)/python -m tests.conformance.rtsp
	$(BIN)/python -m tests.conformance.tftp
	$(BIN)/python -m tests.conformance.portmap
	$(BIN)/python -m tests.conformance.bittorrent
	$(BIN)/python -m tests.conformance.irc

# The generated part of docs/reference, and all of docs/ as a site in build/docs.
docs: setup .venv/.docs
	$(BIN)/python -m gateway.cli.reference docs
	$(BIN)/python docs/rooms.py
	$(BIN)/python docs/decisions.py
	$(BIN)/mkdocs build --strict --quiet

# Not for everybody: the documentation's own tools.
.venv/.docs: requirements/docs.txt | .venv/.run
	$(PIP_INSTALL) --require-hashes -r $<
	@touch $@

# A source distribution and, from it, a wheel with what is compiled; and a wheel of the client's side alone. Into dist/.
dist: .venv/.test
	rm -rf dist
	ALGATE_COMPILE=1 $(BIN)/python -m build --no-isolation --outdir dist >/dev/null
	gateway/client/wheel/build dist
	@ls dist

# And a Debian package of the wheel, for the release that this is.
deb: dist
	gateway/supervisor/install/debian/build dist/algate-*.whl dist

# All of a release, in dist/: sdist, wheel, a Debian package for each of RELEASES (in root file systems of theirs), an OCI image,
# checksums. The version is gateway.__version__.
release: dist
	tests/fresh/fresh deb
	RELEASES=$(firstword $(RELEASES) bookworm) tests/fresh/fresh image
	cd dist && sha256sum -- * >SHA256SUMS && cat SHA256SUMS

# What a newcomer types, on minimal root file systems of each release: `make fresh STEPS="run test deb service"`, see tests/fresh/fresh.
STEPS ?= run
fresh:
	tests/fresh/fresh $(STEPS)

# TESTS in the kernel of this distribution, on an emulated machine: what needs a kernel that this machine has not, as a
# flowtable. Three minutes; the deadlines of tests are LAB_PATIENCE times as long there.
TESTS ?= tests/net/test_flow_offload.py
emulated: setup
	@requirements/debian install requirements/emulated.deb
	tests/fresh/emulated $(BIN)/python -m pytest -n 0 -p no:cacheprovider --timeout 1800 $(PYTEST_ARGS) $(TESTS)

clean:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m tests.lab --remove-stale; fi
	find alg gateway -name '*.so' -delete
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
