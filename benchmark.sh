#!/usr/bin/env bash
# Every experiment by name. Each command makes its own environment, .venv, first.
#   bash benchmark.sh quickstart   make a dataset, train DMG on it, print its score, draw its learning curve;
#                                  further flags go to dmg_iql.py; the same command goes on where it stopped
#   bash benchmark.sh NAME ...     a table or figure of the paper: table1 table2 table3 table4 table6 figure1 ...
#                                  figure6; what it can do: bash benchmark.sh table2 --help
#   bash benchmark.sh datasets     collect the 21 local datasets, and list them in reports/datasets.md
#   bash benchmark.sh speed ...    iterations per second beside the usual way of writing the update
#   bash benchmark.sh gpu ...      checks and measurements on a GPU
#   bash benchmark.sh test ...     formatter, linter and all tests, or what is named for pytest
# PYTHON names a Python 3.11 to 3.14 (default: python3.11, else the newest there is). Datasets are in
# $D4RL_DATASET_DIR (default ~/.d4rl/datasets), results in runs/ and reports/. Relative paths start here.
set -euo pipefail
cd "$(dirname "$0")"

# glibc keeps freed memory instead of giving it back: faster on a CPU.
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=268435456
export GOMP_SPINCOUNT=10000 # threads do not wait in a busy loop while other processes need the cores
export TQDM_MININTERVAL=5   # a line of progress every five seconds at most

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
}

fail() {
    echo "error: $*" >&2
    exit 1
}

# version PYTHON: 3.11, for example
version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo none
}

# environment FILE: make .venv and install FILE into it, unless that was done for just this FILE
environment() {
    local python stamp=.venv/installed-$1
    local candidates=(.venv/bin/python python3.11 python3.14 python3.13 python3.12 python3)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        case $(version "$python") in 3.11 | 3.12 | 3.13 | 3.14) break ;; esac
        python=
    done
    [ -n "$python" ] || fail "${PYTHON:-python3} is no Python 3.11 to 3.14; install one, or name one with PYTHON=..."
    if [ ! -x .venv/bin/python ]; then
        "$python" -m venv .venv
    elif [ "$(version .venv/bin/python)" != "$(version "$python")" ]; then
        fail ".venv has Python $(version .venv/bin/python), not $(version "$python"); rename it, or leave PYTHON out"
    fi
    if ! cat requirements.txt "$1" | cmp -s - "$stamp"; then
        echo "installing $1 into .venv (a few minutes) ..." >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps d4rl==1.1 # for its ant.xml
        cat requirements.txt "$1" >"$stamp"
    fi
    PATH=$PWD/.venv/bin:$PATH
}

quickstart() {
    local env_id=hopper-medium-local iterations=15000
    environment requirements.txt
    case " $* " in
    *" --help "* | *" -h "*) exec python dmg_iql.py --help ;;
    *" --run-dir"* | *" --run_dir"*) fail "quickstart's runs are in runs/quickstart; leave --run-dir out" ;;
    esac
    collect $env_id
    python dmg_iql.py --env-id $env_id --run-dir runs/quickstart --exp-name DMG --num-seeds 2 \
        --iterations $iterations --eval-every $((iterations / 10)) --save-every $((iterations / 10)) --resume "$@"
    python tools/report.py runs/quickstart --figure reports/quickstart.png
}

# collect ID ...: make those of these local datasets that are missing
collect() {
    local env_id missing="from common import dataset_file; import sys
print(*[i for i in sys.argv[1:] if not dataset_file(i).exists()])"
    missing=$(PYTHONPATH=tools python -c "$missing" "$@")
    for env_id in $missing; do
        python tools/data/collect.py --env-id "$env_id"
    done
}

datasets() {
    [ $# = 0 ] || fail "datasets takes no flags; python tools/data/collect.py --help has some"
    environment requirements.txt
    collect $(PYTHONPATH=tools python -c "from common import LOCAL_IDS; print(*LOCAL_IDS)")
    python tools/data/describe.py --out reports/datasets.md
}

run_tests() {
    environment requirements-dev.txt
    export OMP_NUM_THREADS=1
    TMPDIR=$(mktemp -d) # all that the tests leave
    export TMPDIR
    trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$TMPDIR"' EXIT
    ruff format --check .
    ruff check .
    if [ $# -gt 0 ]; then
        python -m pytest -q --basetemp "$TMPDIR/tests" "$@"
        return
    fi
    # Two processes, every other file each
    local files=(tests/test_*.py) odd=() even=() i status=0
    for ((i = 0; i < ${#files[@]}; i += 2)); do
        even+=("${files[i]}") odd+=("${files[@]:i+1:1}")
    done
    python -m pytest -q --basetemp "$TMPDIR/odd" "${odd[@]}" >"$TMPDIR/log" 2>&1 &
    python -m pytest -q --basetemp "$TMPDIR/even" "${even[@]}" || status=1
    wait $! || status=1
    cat "$TMPDIR/log"
    [ $status = 0 ] || fail "a test failed, see above"
    echo "all passed: format, lint and tests"
}

command=${1:-}
[ $# = 0 ] || shift
case $command in
quickstart) quickstart "$@" ;;
datasets) datasets "$@" ;;
table[12346] | figure[1-6])
    environment requirements.txt
    python tools/reproduce.py "$command" "$@"
    ;;
speed | gpu)
    environment requirements.txt
    python "tools/$command.py" "$@"
    ;;
test) run_tests "$@" ;;
-h | --help) usage ;;
*)
    [ -z "$command" ] || echo "error: '$command' is none of quickstart, datasets, table1, table2, table3, table4," \
        "table6, figure1 to figure6, speed, gpu, test" >&2
    usage >&2
    exit 2
    ;;
esac
