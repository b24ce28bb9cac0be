#!/usr/bin/env bash
# Sets up an environment and runs the tests:
#
#   scripts/test.sh                    lint, format, types, and the tiers unit, integration and e2e
#   scripts/test.sh full               all of these and the tier full
#   scripts/test.sh PYTEST_ARGUMENTS   pytest alone
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment "${PYTHON:-python3.11}" "${AXOLOTL_VERSION:-0.19.0}"
cd "$root"
# One thread per process: with tiny models, threads wait longer than they compute.
export OMP_NUM_THREADS=1
# Spread files, not tests, over the cores: a file's tests share a run. They start in the given
# order; by default those with the fewest tests, which are the longest here, would come last.
parallel=(-q -n auto --dist loadfile --no-loadscope-reorder --durations 15)
if [ $# -gt 0 ] && [ "$1" != full ]; then
    exec python -m pytest "${parallel[@]}" "$@"
fi
ruff check .
ruff format --check .
# Types are checked while the tests run: mypy takes one core for most of a minute.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
mypy >"$types" 2>&1 &
# The longest files first, so that no core is left with one of them.
tiers=(tests/e2e tests/integration tests/unit)
if [ "${1:-}" = full ]; then
    tiers=(tests)
fi
failed=0
python -m pytest "${parallel[@]}" "${tiers[@]}" || failed=1
wait "$!" || failed=1
cat "$types"
exit "$failed"
