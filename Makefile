# The commands of this project; `make help` lists them. Bash, for arrays and pipefail.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run test test-api chaos chaos-mutants bench prove lint fmt install uninstall deb cargo-deb

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# What makes a Debian package of files that are there: a program in cargo's own bin directory, built once for each version.
CARGO_DEB_VERSION := 3.8.0
install_cargo_deb = [ "$$(cargo deb --version 2>/dev/null)" = "cargo-deb $(CARGO_DEB_VERSION)" ] || \
	env -u CARGO_TARGET_DIR cargo install cargo-deb --version $(CARGO_DEB_VERSION) --locked

# Whoever only runs it needs the servers; the tests need promtool, a browser and cargo-deb besides, and test-api Python.
setup: ## Install PostgreSQL and RabbitMQ where they are missing
	@missing=(); \
	compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql); \
	[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null || missing+=(rabbitmq-server); \
	[ -z "$${SETUP_PROMTOOL:-}" ] || command -v promtool >/dev/null || missing+=(prometheus); \
	[ -z "$${SETUP_BROWSER:-}" ] || command -v chromedriver >/dev/null || missing+=(chromium chromium-driver chromium-headless-shell); \
	[ -z "$${SETUP_DEB:-}" ] || command -v dpkg-shlibdeps >/dev/null || missing+=(dpkg-dev); \
	[ -z "$${SETUP_DEB:-}" ] || [ "$$(id -u)" -eq 0 ] || command -v fakeroot >/dev/null || missing+=(fakeroot); \
	[ -z "$${SETUP_PYTHON:-}" ] || python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv); \
	if [ $${#missing[@]} -eq 0 ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then \
		echo "Please install: $${missing[*]} (PostgreSQL 14 or newer with initdb, RabbitMQ 3.10 or newer, promtool of Prometheus, Chromium with chromedriver, dpkg with dpkg-shlibdeps, fakeroot, and Python 3.10 or newer with venv for the tests), then run make again." >&2; exit 1; fi; \
	sudo=(); if [ "$$(id -u)" -ne 0 ]; then \
		command -v sudo >/dev/null || { echo "Please run as root: apt-get install $${missing[*]}" >&2; exit 1; }; sudo=(sudo); fi; \
	echo "Installing $${missing[*]}"; \
	"$${sudo[@]}" apt-get update -q; \
	policy=/usr/sbin/policy-rc.d; \
	if [[ " $${missing[*]} " == *" prometheus "* ]] && [ ! -e $$policy ]; then \
		echo "Of prometheus only promtool is wanted: its service is not started"; \
		trap '"$${sudo[@]}" rm -f '$$policy EXIT; \
		printf '#!/bin/sh\ncase "$$1" in prometheus*) exit 101 ;; esac\n' | "$${sudo[@]}" tee $$policy >/dev/null; \
		"$${sudo[@]}" chmod 755 $$policy; fi; \
	"$${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$${missing[@]}"; \
	if [[ " $${missing[*]} " == *" prometheus "* ]]; then \
		"$${sudo[@]}" systemctl --quiet disable prometheus 2>/dev/null || true; fi
	@[ -z "$${SETUP_DEB:-}" ] || $(install_cargo_deb)

run: setup ## Build, and run everything on this machine (stockctl up)
	cargo run -- up

# Tests mostly wait for servers, so more of them run at once than there are cores.
test: export RUST_TEST_THREADS ?= 10
test: export SETUP_PROMTOOL := yes
test: export SETUP_BROWSER := yes
test: export SETUP_DEB := yes
test: setup ## Run every test, chaos included, on private servers
	cargo test --all-targets

# The executable that the tests were built with. What it needs of Python comes from PyPI, once, and stays beside the builds.
test-api: export SETUP_PYTHON := yes
test-api: setup ## Try the running API by its description, and with a generated client (TEST_API_SECONDS=300 for long)
	cargo test --all-targets --no-run
	tests/api/run "$${CARGO_TARGET_DIR:-target}/debug/stockctl" "$${CARGO_TARGET_DIR:-target}/api"

chaos: setup ## Real faults on real processes, then the books (CHAOS_FAULTS=200 for long, CHAOS_SEED=N to repeat)
	cargo test --test chaos

chaos-mutants: export CHAOS_MUTANTS ?= all
chaos-mutants: setup ## Plant bugs in a debug build, and see that chaos finds each (CHAOS_MUTANTS=decide-again for one)
	cargo test --features fault-injection --test chaos

bench: setup ## How fast it is beside pgbench and COPY, as a table of ratios (an hour; BENCH_CASES=flow for one)
	cargo bench --bench bench

prove: export PROPTEST_CASES ?= 1000000
prove: ## Drive the protocol through a million random histories (minutes; PROPTEST_CASES=N for another number)
	cargo test --release --lib protocol_test

# Where things go; DESTDIR is put in front of all of them, for packages and for trying out.
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
bindir := $(PREFIX)/bin
docdir := $(PREFIX)/share/doc/stockctl
unitdir := $(PREFIX)/lib/systemd/system
sysusersdir := $(PREFIX)/lib/sysusers.d
tmpfilesdir := $(PREFIX)/lib/tmpfiles.d
mandir := $(PREFIX)/share/man/man1
# What each shell reads completions from, and the shell.
bash_completion := $(PREFIX)/share/bash-completion/completions/stockctl
zsh_completion := $(PREFIX)/share/zsh/site-functions/_stockctl
fish_completion := $(PREFIX)/share/fish/vendor_completions.d/stockctl.fish
units := $(notdir $(wildcard config/systemd/*.target config/systemd/*.socket config/systemd/*.service config/systemd/*.timer))
in_place = sed -e 's|@bindir@|$(bindir)|g' -e 's|@docdir@|$(docdir)|g' -e 's|@sysconfdir@|$(SYSCONFDIR)|g'

# What it shows and names is beside it then.
readme_in_place = sed -e 's|](tests/screenshots/|](screenshots/|g' -e 's|](config/default.toml)|](default.toml)|g'

# The program writes its completions and man pages itself.
stage_generated = stage=$$(mktemp -d); trap 'rm -rf "$$stage"' EXIT; program=$$(realpath $(BINARY)); \
	for shell in bash zsh fish; do "$$program" completions "$$shell" >"$$stage/$$shell"; done; \
	"$$program" man "$$stage/man"

target := $(or $(CARGO_TARGET_DIR),target)

# A binary that is given is installed as it is; without one, a release is built first.
ifeq ($(origin BINARY), undefined)
BINARY := $(target)/release/stockctl
install: release
endif

.PHONY: release
release:
	cargo build --release

install: ## Install the program, its units, completions and man pages (PREFIX=/usr/local, DESTDIR=, BINARY=FILE for one that is built)
	@install -D -m 755 $(BINARY) $(DESTDIR)$(bindir)/stockctl
	@for unit in $(units); do \
		install -D -m 644 <($(in_place) "config/systemd/$$unit") "$(DESTDIR)$(unitdir)/$$unit"; done
	@install -D -m 644 config/systemd/stockctl.sysusers $(DESTDIR)$(sysusersdir)/stockctl.conf
	@install -D -m 644 <($(in_place) config/systemd/stockctl.tmpfiles) $(DESTDIR)$(tmpfilesdir)/stockctl.conf
	@install -D -m 644 -t $(DESTDIR)$(docdir) config/default.toml config/alerts.yml config/grafana-dashboard.json
	@install -D -m 644 <($(readme_in_place) README.md) $(DESTDIR)$(docdir)/README.md
	@install -D -m 644 -t $(DESTDIR)$(docdir)/screenshots tests/screenshots/*.png
	@$(stage_generated); \
	install -D -m 644 "$$stage/bash" $(DESTDIR)$(bash_completion); \
	install -D -m 644 "$$stage/zsh" $(DESTDIR)$(zsh_completion); \
	install -D -m 644 "$$stage/fish" $(DESTDIR)$(fish_completion); \
	install -D -m 644 -t $(DESTDIR)$(mandir) "$$stage"/man/*.1
	@[ -e $(DESTDIR)$(SYSCONFDIR)/stockctl/stockctl.toml ] || \
		install -D -m 640 config/stockctl.toml $(DESTDIR)$(SYSCONFDIR)/stockctl/stockctl.toml
	@echo "Installed below $(DESTDIR)$(PREFIX); the configuration is $(DESTDIR)$(SYSCONFDIR)/stockctl/stockctl.toml."
	@[ -n "$(DESTDIR)" ] || echo "Now: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload, fill in the configuration, stockctl --config $(SYSCONFDIR)/stockctl/stockctl.toml migrate --vendors, systemctl enable --now stockctl.target"

uninstall: ## Remove what install has installed; the configuration stays
	@rm -f $(DESTDIR)$(bindir)/stockctl $(addprefix $(DESTDIR)$(unitdir)/,$(units)) \
		$(DESTDIR)$(sysusersdir)/stockctl.conf $(DESTDIR)$(tmpfilesdir)/stockctl.conf \
		$(addprefix $(DESTDIR),$(bash_completion) $(zsh_completion) $(fish_completion)) \
		$(DESTDIR)$(mandir)/stockctl.1 $(DESTDIR)$(mandir)/stockctl-*.1
	@rm -rf $(DESTDIR)$(docdir)
	@echo "Removed from $(DESTDIR)$(PREFIX); $(DESTDIR)$(SYSCONFDIR)/stockctl is left."

# Without setup, since who makes a package needs no servers. What is installed is written in install alone, and cargo-deb
# takes it from deb_root, whose name it knows from Cargo.toml. Symbols stay as the build has left them.
deb_root := $(target)/release/deb-root
DEB_FLAGS ?=
deb: cargo-deb ## Make a Debian package of a release in target/debian (BINARY=FILE of one that is built, DEB_FLAGS=--fast)
	@command -v dpkg-shlibdeps >/dev/null || { echo "Please install dpkg-dev: its dpkg-shlibdeps tells what the program depends on." >&2; exit 1; }
	@rm -rf $(deb_root)
	@$(MAKE) --no-print-directory install DESTDIR=$(deb_root) PREFIX=/usr SYSCONFDIR=/etc >/dev/null
	@gzip -9n $(deb_root)/usr/share/man/man1/*.1
	@cargo deb --locked --no-build --no-strip $(DEB_FLAGS)

cargo-deb:
	@$(install_cargo_deb)

lint: ## Check formatting, lints and docs
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features fault-injection -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items

fmt: ## Format the code
	cargo fmt
