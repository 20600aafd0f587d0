# Everyday verbs. `just` lists them.

_:
    @just --list --unsorted

# the demo on http://127.0.0.1:8000
demo *FLAGS:
    cargo run --release -- serve {{FLAGS}}

# chat with the demo in the terminal
chat *FLAGS:
    cargo run --release -- run {{FLAGS}}

build:
    cargo build --release --locked

test *FLAGS:
    cargo test --workspace --locked {{FLAGS}}

lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

fmt:
    cargo fmt --all
    cargo fmt --manifest-path tests/oracle/Cargo.toml

# logits beside candle-transformers (minutes to build; needs a C++ compiler)
oracle:
    cargo test --manifest-path tests/oracle/Cargo.toml --locked

# a random checkpoint of about 0.7 B parameters, and what this machine makes of it
bench *FLAGS:
    test -d target/random || python3 scripts/random_checkpoint.py target/random
    cargo run --release -- bench --model target/random {{FLAGS}}

# what nvcc makes of the CUDA kernels, beside what is known (downloads 350 MB once)
gates *FLAGS:
    scripts/cuda/gates.py --nvcc "$(scripts/cuda/toolkit.sh)" {{FLAGS}}

# real clients against target/release/strait: fast (the official ones) or all (docs/clients.md)
clients SET="fast":
    scripts/clients/run.sh {{SET}}

# licences, advisories, sources (needs cargo-deny)
deny:
    cargo deny check

# all that must pass before a change lands
ci:
    bash .ci/run

# the demo and a Prometheus that scrapes it
up:
    docker compose -f docker/compose.yaml up --build
