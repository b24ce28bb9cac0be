"""Run `axolotl t-spin run` with one engine on 256 problems of GSM8K, killed twice on the way.

    python benchmarks/loop.py OUT --engine vllm --data GSM8K/train.jsonl --vllm-bin ENV/bin

The first kill comes in the middle of iteration 0's sampling, the second after a checkpoint of
iteration 1's training. At the end the run's data is checked: each iteration's triplets have every
prompt once, the anchor is the same in all, and the responses in the killed process's journal are
still there.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from quickstart import unpack_model  # noqa: E402

from axolotl_tspin.generation.blocks import rows_done  # noqa: E402
from axolotl_tspin.run.directory import RunDirectory  # noqa: E402
from axolotl_tspin.run.tables import read_table  # noqa: E402

ROWS = 256
PORT = 8411


def write_run(folder: Path, engine: str, data: Path, vllm_bin: Path | None) -> Path:
    """Write the model, the rows and the YAML of a run; return the YAML's path."""
    model = folder.parent / "SmolLM2-135M-Instruct"
    if not (model / "model.safetensors").exists():
        unpack_model(model)
    problems = [json.loads(line) for line in data.read_text().splitlines()]
    problems.sort(key=lambda problem: len(problem["answer"]))
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "train.jsonl"
    rows.write_text("".join(json.dumps(problem) + "\n" for problem in problems[:ROWS]))

    cfg = yaml.safe_load((ROOT / "benchmarks" / "loop.yml").read_text())
    cfg |= {"base_model": str(model), "output_dir": str(folder / "run")}
    cfg["datasets"][0]["path"] = str(rows)
    cfg["t_spin"]["generation"]["backend"] = engine
    if engine == "vllm":
        cfg["t_spin"]["generation"]["python"] = str(vllm_bin / "python")
    if engine == "server":
        cfg["t_spin"]["generation"] |= {
            "servers": [f"http://127.0.0.1:{PORT}/v1"],
            "server_command": f"{vllm_bin / 'vllm'} serve {{model}} --host 127.0.0.1 "
            f"--port {PORT} --dtype float32 --max-model-len 256 --enforce-eager "
            "--generation-config vllm --no-enable-chunked-prefill",
        }
    path = folder / "run.yml"
    path.write_text(yaml.safe_dump(cfg, sort_keys=False))
    return path


def start(path: Path) -> subprocess.Popen:
    # In a separate process group, a kill also ends the step's process.
    return subprocess.Popen(
        [sys.executable, "-m", "axolotl.cli.main", "t-spin", "run", path],
        cwd=path.parent,
        start_new_session=True,
    )


def kill_when(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    """Send SIGKILL to the whole group as soon as `reached` returns True."""
    while not reached():
        if process.poll() is not None:
            sys.exit(f"the run ended with status {process.returncode} before it could be killed")
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def stored(folder: Path) -> dict[int, dict]:
    """Read the responses of a folder's journals and blocks, by row."""
    responses = {}
    for path in folder.glob("block_*.journal"):
        for line in path.read_bytes().splitlines(keepends=True):
            # The last line may be incomplete.
            record = json.loads(line.split(b" ", 1)[1]) if line.endswith(b"\n") else {}
            if "response" in record:
                responses[record["response"]["row"]] = record["response"]
    for path in folder.glob("block_*.parquet"):
        responses |= {row["row"]: row for row in read_table(path)[0].to_pylist()}
    return responses


def check(run: RunDirectory, before_kill: dict[int, dict]) -> None:
    """Check that nothing is lost or doubled, and that there is one anchor."""
    anchor = None
    for number in range(3):
        table, _ = read_table(run.iteration(number).triplets("train"))
        assert table["row"].to_pylist() == list(range(ROWS))
        anchor = anchor or table["proto_synthetic_ids"].to_pylist()
        assert table["proto_synthetic_ids"].to_pylist() == anchor
    kept = stored(run.iteration(0).responses("train"))
    assert all(kept[row] == response for row, response in before_kill.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", choices=["transformers", "vllm", "server"], required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vllm-bin", type=Path, help="the bin folder of vLLM's environment")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    path = write_run(args.folder.resolve() / args.engine, args.engine, args.data, args.vllm_bin)
    run = RunDirectory(path.parent / "run")
    responses = run.iteration(0).responses("train")

    started = time.monotonic()
    kill_when(start(path), lambda: rows_done(responses)[0] >= 64)
    before_kill = stored(responses)
    print(f"--- killed with {len(before_kill)} of {ROWS} responses stored", flush=True)
    kill_when(start(path), lambda: run.iteration(1).last_checkpoint() is not None)
    print(f"--- killed after {run.iteration(1).last_checkpoint()}", flush=True)
    process = start(path)
    if process.wait() != 0:
        sys.exit(f"the run failed with status {process.returncode}")
    check(run, before_kill)
    print(f"--- done in {time.monotonic() - started:.0f} s; checks passed", flush=True)
    subprocess.run([sys.executable, "-m", "axolotl.cli.main", "t-spin", "status", path], check=True)


if __name__ == "__main__":
    main()
