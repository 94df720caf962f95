# Everything that a developer or an operator does with this tree. `make` lists it.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  ?= $(shell git describe --always --abbrev=40 --exclude='*' --dirty 2>/dev/null)
DATE    ?= $(shell git log -1 --format=%cI 2>/dev/null)
PREFIX  ?= /usr/local
DIST    ?= dist

# How long each target of `make fuzz` runs, and how often `make kill-test`
# kills and `make powerloss-test` cuts the power.
FUZZTIME ?= 30s
KILLS    ?= 200
LOSSES   ?= 27

# At how many entries `make bench-log` measures, and the disk that is made for them.
LOG_SIZES ?= 10000,1000000
LOG_DISK  ?= 4G

# The version comes from these flags and from nowhere else, so that a build
# needs no .git and is the same from any folder.
LDFLAGS    := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)
BUILDFLAGS := -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
# On Windows no CA runs: docs/releases.md.
PLATFORMS  ?= linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64

# The least version of Go: go.mod's. Go's own words about an older one fill a screen.
GO_WANTED := $(shell sed -n 's/^go //p' go.mod)

TOOL := go tool -modfile=internal/tools/pins/go.mod
BUF  := go tool -modfile=internal/tools/buf/go.mod buf

.DEFAULT_GOAL := help
.PHONY: help run demo build install test check bench bench-peer bench-log generate baseline fuzz \
	kill-test powerloss-test check-deploy site conformance conformance-full conformance-keys compare release go-version clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

run: build ## a CA of your own on this machine, with one certificate to look at (Ctrl-C ends it)
	@internal/tools/packages.sh ca-certificates curl
	@internal/tools/demo/run.sh bin/mayfly

demo: build ## the same in a folder that is thrown away, then exit
	@internal/tools/packages.sh ca-certificates curl
	@internal/tools/demo/run.sh --exit bin/mayfly

go-version:
	@have=$$(go env GOVERSION 2>/dev/null | sed 's/^go//'); \
	[ "$$(printf '%s\n' $(GO_WANTED) "$${have:-0}" | sort -V | head -n 1)" = $(GO_WANTED) ] || \
		{ echo "Mayfly needs Go $(GO_WANTED) or later, and here is $${have:-none}: https://go.dev/dl" >&2; exit 1; }

build: go-version ## bin/mayfly and bin/mayfly-verify, static
	CGO_ENABLED=0 go build $(BUILDFLAGS) -o bin/ ./cmd/mayfly ./cmd/mayfly-verify

install: build ## both into $(PREFIX)/bin
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin bin/mayfly bin/mayfly-verify

test: ## every test of the product, with the race detector
	@internal/tools/packages.sh ca-certificates curl gcc jq openssl systemd softhsm2 opensc libnss3-tools postgresql redis-server rsyslog
	go test -race -timeout=20m ./... # a package takes nine minutes on two cores
	cd internal/tools && go test -race . ./configdoc
	go test -race -tags pkcs11 -run PKCS11 ./ca/kms/...
	go test -race -tags pkcs11 -run 'HSM|WholeIssuance/of/(softhsm|nss)|RootInEveryBackend/(softhsm|nss)' ./cmd/mayfly

check: ## all that must hold before a change is taken in
	@internal/tools/check.sh $(STEPS)

check-deploy: build ## the chart, manifests, alerts and dashboard of deploy/, with helm, kubeconform, kube-score, promtool and pods' own surroundings (root)
	@internal/tools/deploy/run.sh $(if $(UPDATE),-args -update)

site: ## docs/ as pages with a search, into bin/site; a link that leads nowhere fails it
	@internal/tools/site/run.sh bin/site

conformance: build ## cosign, sigstore's Go, Python, Java and JavaScript clients, openssl and others against a running mayfly
	@internal/tools/conformance/run.sh

conformance-full: build ## the same, and those that take long to build: gitsign with a Rekor v1, gh, the Rust client
	@internal/tools/conformance/run.sh --full

conformance-keys: build ## the part of it about keys in a KMS or HSM; writes the table in docs/keys.md
	@internal/tools/packages.sh ca-certificates gcc iproute2 libnss3-tools opensc python3-venv softhsm2
	@MAYFLY_BIN=$${MAYFLY_BIN:-$(CURDIR)/bin/mayfly} internal/tools/conformance/keys.sh --write

bench: build ## measure, beside a peer where `make bench-peer` has built it, and write docs/performance.md
	go build -C internal/tools -o $(CURDIR)/bin/bench ./bench
	bin/bench -mayfly bin/mayfly -peer internal/tools/bench/peer.sh -out docs/performance.md

bench-peer: ## build what Mayfly is measured beside: Fulcio, and a log of Trillian and MariaDB
	@internal/tools/packages.sh ca-certificates mariadb-server openssl
	@internal/tools/conformance/tools.sh peer

bench-log: build ## measure the log at each of LOG_SIZES, in LOG_DISK of memory: 1.4 GB for a million entries
	go build -C internal/tools -o $(CURDIR)/bin/bench ./bench
	internal/tools/bench/image.sh /dev/shm $(LOG_DISK) bin/bench -log -mayfly bin/mayfly -log-sizes $(LOG_SIZES) -out docs/log-performance.md -log-folder

generate: ## write all generated code again
	$(BUF) generate
	go generate ./...

baseline: ## take today's API as the one that must not break (at a release)
	$(BUF) build --path proto/dev --exclude-source-info --output proto/baseline.binpb

fuzz: ## every fuzz target for FUZZTIME each
	@internal/tools/fuzz.sh $(FUZZTIME)

kill-test: ## kill a log that is being written to KILLS times, and a CA between its durable steps: nothing acknowledged may be lost
	MAYFLY_KILLS=$(KILLS) go test -count=1 -timeout=60m -run 'Kill' -v ./ctlog/embedded/... ./ca ./ca/revoke

powerloss-test: ## cut the power of a log's disk LOSSES times (root, ext4 on a loop device); without fsync it must lose something
	MAYFLY_LOSSES=$(LOSSES) go test -count=1 -timeout=60m -run 'PowerLoss' -v ./ctlog/embedded/...

compare: build ## what differs to the outside between another binary and this one: make compare OLD=path/to/mayfly
	@python3 internal/tools/compare/compare.py $(OLD) bin/mayfly

release: go-version ## all that is published of a version, into $(DIST): binaries, image, packages, chart, SBOMs, provenance, signatures
	@internal/tools/packages.sh ca-certificates curl
	@eval "$$(internal/tools/conformance/tools.sh release)" && export NFPM && \
		VERSION='$(VERSION)' COMMIT='$(COMMIT)' DATE='$(DATE)' PLATFORMS='$(PLATFORMS)' internal/tools/release/release.sh $(DIST)

clean: ## remove what was built here (never ./mayfly-data)
	rm -rf bin $(DIST)
