#!/usr/bin/env bash
# Sets up an environment and runs two T-SPIN iterations of SmolLM2-135M-Instruct on the example
# data, on the CPU: scripts/quickstart.sh [OUTPUT_FOLDER]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment "${PYTHON:-python3.11}" "${AXOLOTL_VERSION:-0.19.0}"
exec python "$root/scripts/quickstart.py" "$@"
