#!/usr/bin/env bash
# Sets up an environment and runs the tests: scripts/test.sh [pytest arguments]
# Without arguments: the fast tests, then the end-to-end ones.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment "${PYTHON:-python3.11}" "${AXOLOTL_VERSION:-0.19.0}"
cd "$root"
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi
ruff check . && ruff format --check . && mypy
exec python -m pytest -q -m ''
