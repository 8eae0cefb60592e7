# The short way: `make demo`, `make test`. Everything is built in build/<preset> by CMake and Ninja.
PRESET ?= release
BUILD := build/$(PRESET)
PREFIX ?= /usr/local
DESTDIR ?=

.PHONY: all deps build test test-apps nightly demo bench lint tidy asan fuzz install uninstall clean

all: build

deps:
	scripts/install-deps

build/%/build.ninja: CMakeLists.txt CMakePresets.json
	cmake --preset $*

build: $(BUILD)/build.ninja
	cmake --build $(BUILD)

test: deps build
	ctest --test-dir $(BUILD) --output-on-failure

# Real applications; installs their packages, which are large.
test-apps:
	scripts/install-deps apps
	$(MAKE) build
	ctest --test-dir $(BUILD) --output-on-failure -C Apps -L app

# What takes too long for every change.
nightly: deps build
	$(BUILD)/tests/property_plan --gtest_also_run_disabled_tests --gtest_filter='*.DISABLED_Nightly*'
	tests/system/trees --stasis $(BUILD)/stasis --count 5000
	for properties in $(BUILD)/tests/property_*; do [ -d "$$properties" ] || [ ! -x "$$properties" ] || "$$properties" || exit 1; done
	tests/increments/run --stasis $(BUILD)/stasis --truth $(BUILD)/tests/truth --case truth --seeds 30
	tests/fault/kill_dump --stasis $(BUILD)/stasis --victim $(BUILD)/tests/victim
	tests/fault/kill_restore --stasis $(BUILD)/stasis --victim $(BUILD)/tests/family --kills 200
	tests/system/side_by_side --stasis $(BUILD)/stasis --programs $(BUILD)/tests/programs --rounds 3

demo: deps
	$(MAKE) build
	scripts/demo $(BUILD)/stasis

bench: deps
	$(MAKE) build
	bench/run --stasis $(BUILD)/stasis $(if $(CRIU),--criu $(CRIU))
	$(BUILD)/bench/plan_trees
	$(BUILD)/bench/filters

lint:
	scripts/lint

tidy: $(BUILD)/build.ninja
	scripts/tidy $(BUILD)

asan:
	$(MAKE) build PRESET=asan
	ctest --test-dir build/asan --output-on-failure -L 'unit|property|golden'

# `make fuzz FUZZ_SECONDS=3600` runs each target for an hour instead of a minute.
fuzz: deps
	FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz

install: build
	DESTDIR=$(DESTDIR) cmake --install $(BUILD) --prefix $(PREFIX)

uninstall:
	xargs -r rm -f < $(BUILD)/install_manifest.txt

clean:
	rm -rf build
