# What a step on another machine is run by: static, and the same bytes for the same source.
hm-step:
    RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo --remap-path-prefix=$PWD=/hm-exec" \
        cargo build --locked --profile step --target {{arch()}}-unknown-linux-gnu \
        --no-default-features --features step --bin hm-step
    @echo "export HM_STEP=$PWD/target/{{arch()}}-unknown-linux-gnu/step/hm-step"
