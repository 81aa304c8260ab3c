# Each target is a command that also works by hand. `make demo` and `make test` install what they need:
# Debian packages as root or through sudo, everything else into .tools/.

SHELL := /bin/bash
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
FUZZTIME ?= 30s
FUZZFLAGS ?=

# The product is one static file, optimised by cmd/gatehouse/default.pgo (make pgo). Linters and tests do without the profile: it would
# have every package compiled once more for them.
static := CGO_ENABLED=0 GOFLAGS="$(GOFLAGS) -trimpath"
linted := CGO_ENABLED=0 GOFLAGS="$(GOFLAGS) -trimpath -pgo=off"
product := GATEHOUSE_BIN=$(CURDIR)/bin/gatehouse
# The race detector needs cgo; lint has vetted before. Real programs run beside the tests, hence the long timeout.
race := -race -vet=off -pgo=off -timeout 20m
# The packages with benchmarks: no other test program is linked a second time. What is a module of its own is not among them.
benchmarks = $(filter-out ./test/bench/signin/% ./test/cluster/% ./test/deploy/render/%,$(addprefix ./,$(sort $(dir $(shell grep -rl --include='*_test.go' '^func Benchmark' */)))))

.PHONY: build release demo test e2e-istio e2e-eg lint bench pgo fuzz tools clean

build:
	$(static) go build -o bin/gatehouse ./cmd/gatehouse

# Static files for both architectures, what is in them, and checksums, into bin/release/: docs/release.md.
release:
	go run -pgo=off ./test/tools/release

demo: build
	test/tools/install.sh demo
	bin/gatehouse demo

# Fast failures first. Fuzz seeds are tests; every benchmark runs once.
test:
	$(MAKE) tools
	$(MAKE) lint
	$(MAKE) build
	$(static) go build -o bin/gotest ./test/tools/gotest
	cd test/deploy/render && $(product) ../../../bin/gotest -pgo=off -count=1 ./... # a module of its own: kustomize and Helm. Its cache would not see deploy/
	CGO_ENABLED=1 $(product) bin/gotest $(race) -shuffle=on ./... \
		$(if $(benchmarks),-- $(race) -run '^$$' -bench . -benchtime 1x $(benchmarks))
	cd test/bench/signin && CGO_ENABLED=1 ../../../bin/gotest -pgo=off -short -run '^$$' -bench . -benchtime 1x ./... # a module of its own: Dex's drivers

# A module of its own, on a control plane that is built once: etcd, Kubernetes' API server, istiod. See test/cluster/istio.
e2e-istio:
	$(MAKE) tools
	$(MAKE) build
	$(static) go build -o bin/gotest ./test/tools/gotest
	$(static) go test -pgo=off -c -o bin/attacks.test ./test/envoy
	cluster=$$(test/cluster/install.sh istio) && cd test/cluster && \
		GATEHOUSE_CLUSTER=$$cluster GATEHOUSE_ATTACKS=$(CURDIR)/bin/attacks.test $(product) ../../bin/gotest -pgo=off -count=1 -timeout 20m ./netns ./store ./istio

# Of the same module, on Envoy Gateway without Kubernetes. See test/cluster/eg.
e2e-eg:
	$(MAKE) tools
	$(MAKE) build
	$(static) go build -o bin/gotest ./test/tools/gotest
	cluster=$$(test/cluster/install.sh eg) && cd test/cluster && \
		GATEHOUSE_CLUSTER=$$cluster $(product) ../../bin/gotest -pgo=off -count=1 -timeout 20m ./netns ./eg

lint:
	@test -z "$$(gofmt -l */)" || { echo "gofmt -w these files:"; gofmt -l */; exit 1; }
	@! grep -rl --include='*_test.go' 'time\.Sleep(' */ | xargs -r grep -L '"testing/synctest"' | grep . || { echo "time.Sleep in a test needs testing/synctest: wait for a condition in the files above"; exit 1; }
	go mod tidy -diff
	$(linted) go vet ./...
	$(linted) go fix -diff ./...
	$(linted) go run $(GOLANGCI) run
	@for module in test/deploy/render test/cluster test/bench/signin; do ( set -e; cd $$module; export GOFLAGS="$(GOFLAGS) -pgo=off"; \
		set -x; go mod tidy -diff; go vet ./...; go fix -diff ./...; go run $(GOLANGCI) run ) || exit 1; done

# Some minutes on a quiet machine. The second command is the comparison; see docs/performance.md.
bench: tools build
	$(product) go test -run '^$$' -bench . -benchmem -timeout 60m $(benchmarks)
	go run ./test/bench -envoy .tools/bin/envoy -gatehouse bin/gatehouse
	cd test/bench/signin && CGO_ENABLED=1 go test -pgo=off -run '^$$' -bench . ./...

# The profile that the product is built with, from the load of the bench.
pgo: tools
	go run -trimpath ./test/bench -envoy none -oauth2-proxy none -only '^sessions' -rounds 40 -profile cmd/gatehouse/default.pgo

# For each fuzz target FUZZTIME, one after the other; a crash does not keep the others from running. Inputs that crash are
# left in testdata/fuzz as the seeds of the tests that they will be. FUZZFLAGS="-parallel 1" is gentle.
fuzz:
	@failed=; while IFS=: read -r file name; do \
		pkg=./$$(dirname "$$file"); name=$${name#func }; log=$$(mktemp); \
		if go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $(FUZZFLAGS) "$$pkg" </dev/null >"$$log" 2>&1; \
			then result=ok; else result=FAILED; failed="$$failed $$pkg.$$name"; cat "$$log"; fi; \
		echo "$$pkg $$name: $$(grep -o 'execs: [0-9]*' "$$log" | tail -1 || true) $$result"; rm -f "$$log"; \
	done < <(grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' */ | sort); \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

tools:
	test/tools/install.sh test

clean:
	rm -rf bin .tools test/tools/*/node_modules
