# The developer's whole interface. `sudo make setup` on a fresh Debian 12 is all there is to install.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
CONFIG ?=
SCENARIO ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN := .venv/bin
# For the gateway and its tests: none of these starts a service when it is installed.
PACKAGES := python3 python3-venv iproute2 iptables nftables conntrack procps util-linux ca-certificates \
	curl lftp tnftp ncftp wget openssl dante-client proxychains4 netcat-openbsd ncat openssh-client dnsmasq-base sip-tester baresip-core libpcre3 \
	groff-base systemd gcc python3-dev libnetfilter-queue-dev libkrb5-dev krb5-user krb5-config strace chromium \
	libcap2 libpam0g libssl3 libwrap0 libsodium23 libidn2-0 libhiredis0.14 libmemcached11 libmemcachedutil2 libpcre2-posix3 \
	libverto1 libverto-libev1 libkadm5srv-mit12 libkdb5-10 libgssrpc4 libnetfilter-conntrack3 libevent-core-2.1-7
# The servers that the tests talk to. Unpacked into .venv/peers, not installed: an installed server would be started,
# on port 21 or 5060 of this very machine, and some exclude one another.
PEERS := prometheus rsyslog libestr0 libfastjson4 liblognorm5 vsftpd pure-ftpd proftpd-core kamailio krb5-kdc krb5-admin-server oidentd dante-server microsocks redsocks tinyproxy-bin tor openssh-server tayga

# Where what setup.py compiles is. Made anew when anything there changes; `make pure` takes it away.
COMPILED := setup.py $(wildcard alg/*.py alg/*/*.py gateway/*/*.py gateway/*/*/*.py)

.PHONY: setup packages pure run test bench check lab conformance clean wheelhouse vagrant-test docs dist deb

setup: packages .venv/.python .venv/.compiled .venv/.peers

# Asks dpkg, so it is quick and needs no network and no root when nothing is missing.
packages:
	@missing=$$(comm -23 <(tr ' ' '\n' <<<"$(PACKAGES)" | sort -u) \
		<(dpkg-query -W -f '$${Package} $${db:Status-Status}\n' $(PACKAGES) 2>/dev/null | sed -n 's/ installed$$//p' | sort -u) \
		| tr '\n' ' '); \
	if [ -z "$${missing// }" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then \
		echo "Missing Debian packages: $$missing" >&2; \
		echo "Install them (sudo apt-get install --no-install-recommends $$missing) or run: sudo make setup" >&2; exit 1; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -q && apt-get install -qy --no-install-recommends $$missing

.venv/.python: pyproject.toml | packages
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[router,gssapi,dev]'
	@touch $@

# Half a minute, where anything has changed. The sources stay what they are, and are what a traceback shows.
.venv/.compiled: $(COMPILED) | .venv/.python
	@mkdir -p build
	ALGATE_COMPILE=1 $(BIN)/python -W ignore setup.py -q build_ext --inplace >build/compile.log 2>&1 || { cat build/compile.log >&2; exit 1; }
	@touch $@

# The sources as they are, for whoever works on them with a debugger: `.venv/bin/python -m pytest ...` runs them then.
pure:
	find alg gateway -name '*.so' -delete
	rm -f .venv/.compiled

# Made anew when the list above changes; the stamp holds the list.
.venv/.peers: Makefile | packages .venv/.python
	@if [ "$$(cat $@ 2>/dev/null)" != "$(PEERS)" ]; then \
		set -e; rm -rf .venv/peers; mkdir -p .venv/peers; cd .venv/peers; \
		echo "apt-get download $(PEERS)"; \
		ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 || apt-get update -q; \
		apt-get download -q -o APT::Sandbox::User=root $(PEERS); \
		for package in *.deb; do dpkg -x "$$package" .; done; \
		rm -f -- *.deb; \
	fi
	@echo "$(PEERS)" >$@

# CONFIG=FILE; without it /etc/algate/algate.toml, and without that SOCKS for this machine.
run: setup
	exec $(BIN)/algate run $(if $(CONFIG),-c $(CONFIG))

# As root all of it, network namespaces and slow tests too; else what needs no root. PYTEST_ARGS goes to pytest. Tests wait
# for packets and processes more than they compute: three files at a time (`-n 0`: one, as a debugger needs it).
test: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile $(PYTEST_ARGS)

# All peers, several rounds, into docs/benchmarks.md; under 20 minutes. BENCH_ROUNDS=1 BENCH_SECONDS=1 is quick.
bench: setup
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

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
	$(BIN)/pip wheel --quiet --disable-pip-version-check --wheel-dir vagrant/wheelhouse '.[router]'
	rm vagrant/wheelhouse/algate-*.whl
	ALGATE_COMPILE=1 $(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir vagrant/wheelhouse .
	@ls vagrant/wheelhouse

# The Vagrant lab, brought up, and every scenario in it. See vagrant/README.md.
vagrant-test: wheelhouse
	cd vagrant && vagrant up --no-parallel && ./test

# FTP with us, with the kernel's helper and with neither, and real clients with real servers: the tables of docs/protocols/ftp.md.
conformance: setup
	$(BIN)/python -m tests.conformance.ftp
	$(BIN)/python -m tests.conformance.sip

# The generated part of docs/reference, and all of docs/ as a site in build/docs.
docs: setup .venv/.docs
	$(BIN)/python -m gateway.cli.reference docs
	$(BIN)/mkdocs build --strict --quiet

# Not for everybody: the documentation's own tools.
.venv/.docs: pyproject.toml | .venv/.python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

# A source distribution and, from it, a wheel with what is compiled; then a Debian package of the wheel. Into dist/.
dist: setup
	rm -rf dist
	ALGATE_COMPILE=1 $(BIN)/python -m build --no-isolation --outdir dist >/dev/null
	@ls dist

deb: dist
	gateway/supervisor/install/debian/build dist/*.whl dist

clean:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m tests.lab --remove-stale; fi
	find alg gateway -name '*.so' -delete
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
