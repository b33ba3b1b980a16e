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
    STRONGROOM_SIM_CUTS=1000000 cargo test --release --test simulation every_power_cut_leaves -- --nocapture
    STRONGROOM_SIM_CUTS=200000 cargo test --release --test simulation failing_disk -- --nocapture
    STRONGROOM_SIM_LENGTH=3 cargo test --release --test exhaustive -- --nocapture

# the suites from outside and the comparison with ext4 at full size, some hours; as root
suites: setup
    STRONGROOM_TEST_SECONDS_MAX=20000 STRONGROOM_COMMAND_SECONDS_MAX=20000 STRONGROOM_FSX_OPS=200000 STRONGROOM_FSX_ROUNDS=8 \
        cargo test --release --test mount_fsx -- --nocapture
    STRONGROOM_TEST_SECONDS_MAX=5000 STRONGROOM_FUZZ_SECONDS=3600 cargo test --release --test mount_fuzz -- --nocapture
    STRONGROOM_TEST_SECONDS_MAX=5000 STRONGROOM_SCALE_FILES=1000000 cargo test --release --test mount_scale -- --nocapture
    STRONGROOM_STRESS_SECONDS=10 STRONGROOM_PGBENCH_SECONDS=60 STRONGROOM_HABIT_ROUNDS=40 STRONGROOM_GIT_FILES=20000 \
        cargo test --release --test mount_pjdfstest --test mount_stress --test mount_postgres --test mount_apps --test mount_copies --test mount_habits

# an example vault, mounted
example: setup
    cargo build --release
    mount-scripts/example
