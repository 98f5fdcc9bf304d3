# Few words: build test lint soak bench demo. Each installs what it needs (as root, on Debian) and says what it does.
export PATH := $(CURDIR)/.tools/go/bin:/usr/local/go/bin:$(PATH):/usr/sbin:/sbin
export GOFLAGS := -buildvcs=false
export GOTOOLCHAIN := local
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LINT := .tools/golangci-lint

.PHONY: build test lint soak bench demo clean

build:
	@packaging/bootstrap build
	@echo "==> building bin/tortie"
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/tortie ./cmd/tortie

test: build
	@packaging/bootstrap test
	@$(MAKE) --no-print-directory lint
	@echo "==> go test -race ./..."
	@go test -race -count=1 -timeout 20m ./...

lint: $(LINT)
	@echo "==> go vet, golangci-lint"
	@go vet ./...
	@$(LINT) run ./...

$(LINT): tools/go.mod
	@packaging/bootstrap test
	@echo "==> building golangci-lint"
	@cd tools && go build -o ../$(LINT) github.com/golangci/golangci-lint/v2/cmd/golangci-lint

# SEED=n starts where another run did.
soak:
	@packaging/bootstrap test
	@echo "==> 200,000 random packets against explain"
	@TORTIE_TEST_PRIVILEGED=1 TORTIE_TEST_SEED=$(SEED) go test ./proof -count=1 -timeout 30m -v -run 'TestPackets|TestReplay' -args -packets 200000
	@echo "==> 1,000 mutations of rulesets, found or without effect"
	@TORTIE_TEST_PRIVILEGED=1 TORTIE_TEST_SEED=$(SEED) go test ./verify -count=1 -timeout 30m -v -run TestMutations -args -mutations 1000

bench: build
	@packaging/bootstrap test
	@echo "==> benchmarks, written to bench/results.json"
	@go run ./bench

demo: build
	@bin/tortie lab demo --examples examples

clean:
	rm -rf bin .tools
