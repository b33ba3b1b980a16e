# `just check` is everything the CI runs. The work itself is in .ci/, so that `just` is a convenience, not a need.

# lists the recipes
default:
    @just --list

# format, lints, docs and all tests
check: setup
    .ci/check

# installs what building and testing need (Debian)
setup:
    .ci/setup

# formats the code
fmt:
    cargo fmt

# only what needs no mount: fast
quick:
    cargo test --lib --test tidy

# the tests at full size, on an optimised build
full: setup
    cargo test --release --no-fail-fast

# a million power cuts in simulated worlds, half an hour on two idle cores
soak:
    STRONGROOM_SIM_CUTS=1000000 cargo test --release --test simulation every_power_cut -- --nocapture
    STRONGROOM_SIM_CUTS=200000 cargo test --release --test simulation failing_disk -- --nocapture
    STRONGROOM_SIM_LENGTH=3 cargo test --release --test exhaustive -- --nocapture

# an example vault, mounted
example: setup
    cargo build --release
    mount-scripts/example
