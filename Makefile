# Everything a newcomer or CI needs. Each target makes what it depends on.
PYTHON ?= python3
CARGO ?= cargo

.PHONY: help libtorch build demo test check fmt clippy doc licences faults soak deny bench browser clean

help:
	@echo "make demo    train on generated images, test the features, draw neighbours (about three minutes)"
	@echo "make test    build and run all tests"
	@echo "make build   the optimised program: target/release/lemniscate"
	@echo "make check   what CI runs: format, clippy, docs, tests, licences"
	@echo "make soak    an hour of faults around runs; SOAK='--minutes 5' for less"
	@echo "make deny    known vulnerabilities of dependencies; needs cargo-deny and its database"
	@echo "make browser checks pages in a headless Chromium (needs node and playwright-core)"
	@echo "make bench   side-by-side measurements against PyTorch (installs it into a cache first)"

libtorch:
	@$(PYTHON) scripts/libtorch.py

build: libtorch
	$(CARGO) build --release

demo: build
	@rm -rf runs/demo
	@mkdir -p runs
	target/release/lemniscate train --config scripts/demo.toml --out runs/demo
	target/release/lemniscate eval runs/demo --picture runs/demo/neighbors.png
	@echo "curves: runs/demo/curves.svg   neighbours: runs/demo/neighbors.png"

test: libtorch
	$(CARGO) test

fmt:
	$(CARGO) fmt --check

clippy: libtorch
	$(CARGO) clippy --all-targets -- -D warnings

doc: libtorch
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps

# The licences of all dependencies against deny.toml; part of `make test` too.
licences: libtorch
	$(CARGO) test --test licences

check: fmt clippy doc test licences

# The short form of `make soak`; part of `make test` too.
faults: libtorch
	$(CARGO) test --test faults --test hostile --test unsafe_code

soak: build
	$(PYTHON) scripts/soak.py $(SOAK)

# Needs `cargo install cargo-deny`, which fetches the advisory database of RustSec from its git repository; without the
# network, DENY=--disable-fetch takes the copy that an earlier run left.
deny:
	$(CARGO) deny --all-features check $(DENY) advisories bans licenses sources

bench: build
	$(PYTHON) benches/side_by_side.py

# Pages in a real Chromium; tests/browser/README.md says what that needs.
browser: build
	@rm -rf runs/browser
	@mkdir -p runs
	target/release/lemniscate train synthetic:400x32 --out runs/browser --arch resnet18 --width 8 --epochs 2
	target/release/lemniscate neighbors runs/browser --queries 40 --against raw-pixels
	target/release/lemniscate cluster runs/browser
	target/release/lemniscate report runs/browser
	target/release/lemniscate compare runs/browser runs/browser --out runs/browser/compare.html
	node tests/browser/neighbors.mjs runs/browser/neighbors.html runs/browser
	node tests/browser/clusters.mjs runs/browser/clusters/clusters.html runs/browser
	node tests/browser/standalone.mjs runs/browser runs/browser/report.html runs/browser/compare.html
	node tests/browser/with_server.mjs target/release/lemniscate runs/browser tests/browser/serve.mjs runs/browser

clean:
	$(CARGO) clean
