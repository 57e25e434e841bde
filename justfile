# Every bench, into one table: benches/RESULTS.md.
bench:
    benches/run

# What a step on another machine is run by: static, and the same bytes for the same source.
hm-step:
    RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo --remap-path-prefix=$PWD=/hm-exec" \
        cargo build --locked --profile step --target {{arch()}}-unknown-linux-gnu \
        -p hm-exec-step
    @echo "export HM_STEP=$PWD/target/{{arch()}}-unknown-linux-gnu/step/hm-step"

# One target of `cargo fuzz list`, for as many seconds as you like; what it finds new stays out of the committed seeds.
# With TMPDIR on a tmpfs those that write files are ten times as fast.
fuzz target seconds="1200":
    mkdir -p fuzz/artifacts/corpus-{{target}}
    RUSTC_BOOTSTRAP=1 cargo fuzz run {{target}} fuzz/artifacts/corpus-{{target}} fuzz/corpus/{{target}} -- \
        -max_total_time={{seconds}} -rss_limit_mb=2048 -timeout=20

# What the remote cache moves over the commits of a project, whole layers beside chunks: a directory with a tree for each
# commit, an image, and the command that builds a tree there.
chunk-traffic commits image build:
    HM_MEASURE_COMMITS={{quote(commits)}} HM_MEASURE_IMAGE={{quote(image)}} HM_MEASURE_BUILD={{quote(build)}} \
        cargo test --test it cloud::chunk_traffic -- --ignored --nocapture

# Thousands of steps with connections in one process, for as many seconds as you like: nothing may be left of them.
soak seconds="300":
    HM_SOAK_SECONDS={{seconds}} cargo test --test it sandbox::soak -- --ignored --nocapture
