#!/usr/bin/env bash
# Every experiment by name; each command makes its own environment (.venv) with Python 3.11 first.
#   bash benchmark.sh quickstart   collect hopper-medium-local, train DMG on it, print its score, draw its learning curve
#   bash benchmark.sh datasets     collect the 21 local datasets, and list them in docs/datasets.md
#   bash benchmark.sh results      DMG and two other settings on three robots' medium-local (hours; continues where stopped)
#   bash benchmark.sh NAME ...     a table or figure of the paper: table1 table2 table3 table4 table6 figure1 ... figure6;
#                                  --dataset local, --dry-run, --slurm and more: bash benchmark.sh table2 --help
#   bash benchmark.sh speed        iterations per second beside the usual way of writing the update
#   bash benchmark.sh test         every test, and the linter
# Environment: PYTHON (default python3.11, else python3), D4RL_DATASET_DIR (default ~/.d4rl/datasets).
# Relative paths are relative to this folder.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

# environment FILE: make .venv and install FILE into it, unless that was done for just this FILE
environment() {
    local python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
    if ! "${python:-false}" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        echo "error: Python 3.11 is needed and '${python:-python3}' is not; install it, or name one with PYTHON=..." >&2
        exit 1
    fi
    local stamp=.venv/installed-$1
    if [ ! -f "$stamp" ] || ! cat requirements.txt "$1" | cmp -s - "$stamp"; then
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        echo "installing $1 into .venv (a few minutes) ..." >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps d4rl==1.1 # for its ant.xml
        cat requirements.txt "$1" >"$stamp"
    fi
    PATH=$PWD/.venv/bin:$PATH
}

# data ENV_ID: collect a local dataset, unless it is there
data() {
    local name=${1%-local}
    [ -f "${D4RL_DATASET_DIR:-$HOME/.d4rl/datasets}/${name//-/_}-local.hdf5" ] || python tools/collect.py --env-id "$1"
}

quickstart() {
    environment requirements.txt
    data hopper-medium-local
    python dmg_iql.py --env-id hopper-medium-local --exp-name quickstart --num-seeds 2 --iterations 15000 \
        --eval-every 1500 --resume
    python tools/report.py runs/hopper-medium-local__quickstart__s0-1 --figure runs/quickstart.png
}

datasets() {
    environment requirements.txt
    local robot quality
    for robot in halfcheetah hopper walker2d; do
        for quality in random medium medium-replay medium-expert expert; do
            data "$robot-$quality-local"
        done
    done
    for quality in umaze umaze-diverse medium-play medium-diverse large-play large-diverse; do
        data "antmaze-$quality-local"
    done
    python tools/describe_datasets.py --out docs/datasets.md
}

results() {
    environment requirements.txt
    local iterations=${ITERATIONS:-50000} robot runs
    runs=runs/iterations-$iterations  # where table1 looks for runs of this length, which these are
    for robot in hopper walker2d halfcheetah; do
        data "$robot-medium-local"
    done
    # One job per dataset and setting, two at a time, one core each; one that is complete or cut short is skipped or resumed.
    for robot in hopper walker2d halfcheetah; do
        local common="--env-id $robot-medium-local --num-seeds 2 --iterations $iterations --eval-every 5000 --threads 1"
        common+=" --resume --run-dir $runs"
        echo "$common --exp-name DMG"
        echo "$common --exp-name in-sample-ablation --lam 0 --nu inf"
        echo "$common --exp-name TD3+BC-like --lam 1 --nu 0.4 --temperature 0"
    done | OMP_NUM_THREADS=1 xargs -P "${JOBS:-2}" -L 1 python dmg_iql.py ||
        echo "a job failed or diverged (see above); the report shows what there is" >&2
    python tools/report.py "$runs"/*-medium-local__{DMG,in-sample-ablation,TD3+BC-like}__s0-1 --figure docs/results-local.png
}

case "${1:-}" in
quickstart | datasets | results) "$1" ;;
table[12346] | figure[1-6])
    environment requirements.txt
    python tools/benchmark.py "$@"
    ;;
speed)
    environment requirements.txt
    shift
    python tools/speed.py "$@"
    ;;
test)
    environment requirements-dev.txt
    shift
    ruff format --check .
    ruff check .
    export OMP_NUM_THREADS=1
    if [ $# -gt 0 ]; then
        python -m pytest -q "$@"
        exit
    fi
    # Beside all tests, those of whole jobs and of the update run once more for each of the other scripts.
    log=$(mktemp) status=0
    (for script in dmg_xql dmg_sql; do
        echo "as $script.py:"
        DMG_SCRIPT=$script python -m pytest -q tests/test_run.py tests/test_update.py
    done) >"$log" 2>&1 &
    python -m pytest -q || status=$?
    wait $! || status=$?
    cat "$log"
    rm "$log"
    exit "$status"
    ;;
*) usage ;;
esac
