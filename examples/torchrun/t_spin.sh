#!/usr/bin/env bash
# All iterations of a run on several nodes, without a scheduler. Start it on every node:
#
#   NODES=2 NODE=0 HEAD=10.0.0.1 examples/torchrun/t_spin.sh run.yml      on the first
#   NODES=2 NODE=1 HEAD=10.0.0.1 examples/torchrun/t_spin.sh run.yml      on the second
#
# `output_dir` must be on a file system that every node sees. If it stops, start it again on all
# nodes.
set -euo pipefail

config=$1
: "${NODES:?how many nodes}" "${NODE:?this node, from 0}" "${HEAD:?address of node 0}"
gpus=${GPUS_PER_NODE:-$(nvidia-smi --list-gpus | wc -l)}
port=${PORT:-29500}
nodes=(--nnodes "$NODES" --node_rank "$NODE" --master_addr "$HEAD" --master_port "$port")
generate=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../scripts" && pwd)/generate.py

due() {  # print the due step, such as "0 train"
    python -m axolotl_tspin status "$config" --json | python -c \
        'import json, sys; row = json.load(sys.stdin)[-1]; print(row["iteration"], row["step"])'
}

now=$(due)  # on a separate line: if status fails, so does the script
while [[ $now != *done ]]; do
    if [[ $now = *generate ]]; then
        # One process per node; each takes its share of the prompts (torchrun's RANK, WORLD_SIZE).
        torchrun "${nodes[@]}" --nproc_per_node 1 "$generate" "$config"
    else
        axolotl train "$config" --launcher torchrun -- "${nodes[@]}" --nproc_per_node "$gpus"
    fi
    # Other nodes may still work. All of them begin the next step together.
    before=$now
    now=$(due)
    while [ "$now" = "$before" ]; do sleep 10; now=$(due); done
done
