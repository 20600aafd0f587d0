#!/usr/bin/env bash
# Real clients against a strait that serves its demo: a table of what each of them did, as in docs/clients.md.
#
#     scripts/clients/run.sh fast|all [STRAIT]
#
# `fast` is the official Python clients, `all` adds Node, frameworks and lm-eval (hundreds of megabytes of packages once).
# STRAIT is the binary, target/release/strait if it is not told. Packages have the versions of requirements/ and go into
# target/clients. Why a flow failed goes to stderr; then the exit code is 1.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
set_name=${1:-}
strait=${2:-$target/release/strait}
[[ $set_name == fast || $set_name == all ]] || { sed -n 's/^#     /usage: /p' "$0" >&2 && exit 2; }
scratch=$(mktemp -d)
servers=()
failed=0
export PYTHONUTF8=1 PYTHONWARNINGS=ignore HF_HOME=$target/clients/huggingface
for variable in $(compgen -e | grep -E '^(STRAIT|OPENAI|ANTHROPIC)_'); do unset "$variable"; done

finish() {
    local status=$?
    trap - EXIT
    ((${#servers[@]} == 0)) || kill "${servers[@]}" 2>/dev/null || true
    ((status == 0)) || tail -n 20 "$scratch"/*.log >&2 || true
    rm -rf "$scratch"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Starts a server with the flags given; its URL is then in `url`.
serve() {
    local log=$scratch/server-${#servers[@]}.log
    : >"$log"
    "$strait" serve --port 0 "$@" 2>"$log" &
    servers+=($!)
    url=
    for _ in {1..300}; do
        url=$(sed -n 's/.*listening on \(http:[^ "]*\).*/\1/p' "$log")
        [[ -z $url ]] || return 0
        kill -0 $! # it has ended: fail now
        sleep 0.1
    done
    echo "the server did not say where it listens" >&2
    return 1
}

# The virtual environment of requirements/NAME.txt, installed if the file has changed; its python is then in `python`.
environment() {
    local venv=$target/clients/$1 wanted=$here/requirements/$1.txt
    python=$venv/bin/python
    ! cmp -s "$wanted" "$venv/installed.txt" || return 0
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$venv/installed.txt"
}

node_environment() {
    local folder=$target/clients/node
    mkdir -p "$folder"
    cp "$here/requirements/package.json" "$folder/"
    (cd "$folder" && npm install --silent --no-audit --no-fund --prefer-offline)
    export NODE_MODULES=$folder/node_modules
}

# Runs one script's flows, whose lines are the table's.
flows() {
    local status=0
    "$@" "$open" "$keyed" >"$scratch/said" 2>"$scratch/errors" || status=$?
    grep '^| ' "$scratch/said" || status=1
    ((status == 0)) || { failed=1 && cat "$scratch/errors" >&2; }
}

serve
open=$url
serve --api-key sk-clients # harness.py has it too
keyed=$url
echo "| client | version | flow | |"
echo "|---|---|---|---|"
environment official
for script in openai_wire openai_helpers anthropic_messages; do flows "$python" "$here/$script.py"; done
if [[ $set_name == all ]]; then
    node_environment
    flows node "$here/openai_node.mjs"
    environment frameworks
    for script in langchain litellm instructor pydantic_ai agents; do flows "$python" "$here/${script}_flow.py"; done
    environment lm_eval
    flows "$python" "$here/lm_eval_flow.py"
fi
for server in "${servers[@]}"; do
    kill -TERM "$server"
    wait "$server" # drains and exits 0
done
servers=()
exit "$failed"
