"""The generation step under SIGKILL at fifty random moments, half of them with each engine."""

import multiprocessing
import random
import socket
import subprocess
import sys
import time

import pytest
from support.ranks import SCRIPTS

from axolotl_tspin.generation.blocks import rows_done
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import read_table

KILLS = 25
ROWS = 40


def generate_in_small_blocks(path):
    """What a killed process runs."""
    from axolotl_tspin.generation.step import generate
    from axolotl_tspin.run import prompts

    prompts.SMALLEST_BLOCK, prompts.BLOCKS_AT_LEAST = 4, 1000
    generate(path)


@pytest.fixture(scope="module")
def processes():
    """Processes that begin with everything imported, so that little of a life is start-up."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["axolotl_tspin.generation.step", "test_kills"])
    return context


@pytest.fixture(params=["transformers", "server"])
def engine(request, policy_dir):
    """The keys of an engine; a server lives through the kills of those who ask it."""
    if request.param == "transformers":
        yield {"backend": "transformers", "max_new_tokens": 24, "batch_size": 2}
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = SCRIPTS / "completions_server.py"
    process = subprocess.Popen([sys.executable, str(server), str(port), str(policy_dir)])
    yield {
        "backend": "server",
        "max_new_tokens": 24,
        "servers": [f"http://127.0.0.1:{port}/v1"],
        "concurrency": 2,
    }
    process.kill()
    process.wait()


def triplets_of(folder) -> list[dict]:
    return read_table(RunDirectory(folder).iteration(0).triplets("train"))[0].to_pylist()


def test_no_moment_of_a_kill_loses_or_doubles_a_response(make_yaml, tmp_path, processes, engine):
    def begin(folder):
        keys = {"t_spin": {"iterations": 2, "generation": engine}, "output_dir": str(folder)}
        path = make_yaml(rows=ROWS, name=f"{folder.name}.yml", **keys)
        process = processes.Process(target=generate_in_small_blocks, args=(path,))
        process.start()
        return process

    first = begin(tmp_path / "first")
    first.join(300)
    started = time.monotonic()
    whole = begin(tmp_path / "whole")
    whole.join(300)
    duration = time.monotonic() - started
    assert (first.exitcode, whole.exitcode) == (0, 0)
    expected = triplets_of(tmp_path / "whole")
    assert triplets_of(tmp_path / "first") == expected
    assert [row["row"] for row in expected] == list(range(ROWS))

    moments = random.Random(11)
    kills, killed_while_sampling, runs = 0, 0, 0
    while kills < KILLS or runs == 0:
        folder = tmp_path / f"run{runs}"
        responses = RunDirectory(folder).iteration(0).responses("train")
        process, before = begin(folder), rows_done(responses)[0]
        if kills % 2:
            # Half of the kills wait for a new response, so that start-up does not take them all.
            while process.exitcode is None and rows_done(responses)[0] == before:
                time.sleep(0.002)
        moment = moments.uniform(0, duration / 8 if kills % 2 else duration)
        process.join(moment if kills < KILLS else 300)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            made = rows_done(responses)[0]
            assert made >= before, "a response that was stored is gone"
            killed_while_sampling += before < made < ROWS
        else:
            assert process.exitcode == 0
            assert triplets_of(folder) == expected
            assert not list(responses.glob("*.journal")) + list(responses.glob(".*"))
            runs += 1
    print(f"{kills} kills, {killed_while_sampling} while sampling, {runs} runs, {duration:.1f} s")
    assert killed_while_sampling >= 3
