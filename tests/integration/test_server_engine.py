"""The server engine against a small real HTTP server that misbehaves as it is told to."""

import contextlib
import json
import logging
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.ranks import SCRIPTS

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.engines.engine import Request
from axolotl_tspin.generation.engines.server_engine import (
    SECONDS_TO_RESTART,
    ServerEngine,
    ServerUnavailable,
)
from axolotl_tspin.generation.engines.server_process import start_server
from axolotl_tspin.run.directory import Policy

END = 2
KEY = "sk-not-to-be-seen"


class Completions:
    """A server: its answers are a function of the request, its faults are given.

    Args:
        faults: for the n-th completion that is asked for (from 0) the name of a fault, or None.
        port: 0 for a free one.
    """

    def __init__(
        self,
        *,
        root: str | None,
        name: str = "policy",
        faults: Callable[[int], str | None] = lambda n: None,
        with_ids: bool = True,
        key: str | None = None,
        seconds: float = 0.0,
        port: int = 0,
    ) -> None:
        self.page: tuple[int, object] | None = None  # status and answer to every GET, where given
        self.models = [{"id": name} | ({"root": root} if root else {})]
        self.faults, self.with_ids, self.key, self.seconds = faults, with_ids, key, seconds
        self.bodies: list[dict] = []
        self.answered: Counter[int] = Counter()
        self.now = self.most = 0
        self.stopped = False
        self.lock = threading.Lock()
        self.sockets: set = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                server.sockets.add(self.connection)
                if server.stopped:  # this connection was not among those hung up
                    hang_up(self.connection)

            def do_GET(self):
                if server.page:
                    self.reply(*server.page)
                elif self.path.endswith("/models"):
                    self.reply(200, {"data": server.models})
                else:
                    self.reply(404, {})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                    self.reply(401, {"error": "no such key"})
                    return
                with server.lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.now += 1
                    server.most = max(server.most, server.now)
                try:
                    time.sleep(server.seconds)
                    self.complete(body, server.faults(number))
                finally:
                    with server.lock:
                        server.now -= 1

            def complete(self, body, fault):
                ids, reason = answer_to(body["prompt"], body["max_tokens"])
                choice = {"text": " ".join(map(str, ids)), "finish_reason": reason}
                if server.with_ids:
                    choice["token_ids"] = ids + ([END] if reason == "stop" else [])
                if fault == "drop":
                    self.close_connection = True
                    hang_up(self.connection)
                elif fault == "slow":
                    time.sleep(1.0)
                    self.close_connection = True
                elif fault in ("429", "500", "503"):
                    self.reply(int(fault), {"error": fault}, {"Retry-After": "0"})
                elif fault == "no JSON":
                    self.reply(200, b"<html>gateway</html>")
                elif fault == "no choices":
                    self.reply(200, {"choices": []})
                elif fault == "too long":
                    choice |= {"token_ids": [5] * (body["max_tokens"] + 9), "finish_reason": "stop"}
                    self.reply(200, {"choices": [choice]})
                else:
                    self.reply(200, {"choices": [choice]})
                    server.answered[body["prompt"][0]] += 1

            def reply(self, status, value, headers=None):
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, text in (headers or {}).items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *args):
                pass  # the client went away, as some tests want

        self.http = Server(("127.0.0.1", port), Handler)
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.stopped = True
        self.http.shutdown()
        self.http.server_close()
        for connection in list(self.sockets):
            hang_up(connection)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()


def hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def answer_to(prompt: list[int], limit: int) -> tuple[list[int], str]:
    ids = [prompt[0] + i for i in range(prompt[0] % 7)]
    return (ids, "stop") if len(ids) < limit else (ids[:limit], "length")


def requests(rows: int) -> list[Request]:
    return [Request(row, [100 + row, 3], 5, 1000 + row, (END, 7)) for row in range(rows)]


@pytest.fixture
def folder(tmp_path):
    """A policy's folder; its content is of no account to a server's client."""
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def engine(folder, *servers, strangers=(), tokenize=None, of=ServerEngine, **keys) -> ServerEngine:
    keys = {"patience": 20.0, "timeout": 10.0, "concurrency": 8} | keys
    urls = [s if isinstance(s, str) else s.url for s in servers]
    return of(
        GenerationConfig(backend="server", servers=urls, **keys),
        policy=Policy(str(folder)),
        strangers=list(strangers),
        tokenize=tokenize or (lambda prompt, text: [int(t) for t in text.split()]),
    )


def sampled(engine: ServerEngine, rows: int) -> dict[int, tuple[list[int], str]]:
    """All responses; each row's exactly once, and what the server answers to that row."""
    try:
        responses = [r for some in engine.sample([[q] for q in requests(rows)]) for r in some]
    finally:
        engine.close()
    assert sorted(r.row for r in responses) == list(range(rows))
    for response in responses:
        assert (response.ids, response.finish_reason) == answer_to([100 + response.row], 5)
    return {r.row: (r.ids, r.finish_reason) for r in responses}


def failure(engine_of: Callable[[], ServerEngine], rows: int = 3) -> str:
    with pytest.raises(TSpinError) as caught:
        sampled(engine_of(), rows)
    return str(caught.value)


def test_each_request_is_asked_as_the_yaml_says_and_answered_once(folder):
    with Completions(root=str(folder)) as server:
        responses = sampled(engine(folder, server, temperature=0.7, top_p=0.9), 30)
        assert {reason for _, reason in responses.values()} == {"stop", "length"}
        assert len(server.bodies) == 30
        body = next(b for b in server.bodies if b["prompt"] == [104, 3])
        assert body | {"model": 0} == {
            "model": 0,
            "prompt": [104, 3],
            "max_tokens": 5,
            "seed": 1004,
            "temperature": 0.7,
            "top_p": 0.9,
            "stop_token_ids": [END, 7],
            "return_token_ids": True,
        }


def test_a_server_without_token_ids_has_its_text_tokenised(folder, caplog):
    with Completions(root=str(folder), with_ids=False) as server:
        with caplog.at_level(logging.WARNING):
            sampled(engine(folder, server), 12)
        assert caplog.text.count("gives no token ids") == 1


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    faults=st.lists(
        st.sampled_from([None, "429", "500", "503", "drop", "no JSON", "no choices", "too long"]),
        max_size=6,
    )
)
def test_faults_that_pass_lose_and_double_nothing(folder, faults):
    # No request meets more than two faults that look like garbage.
    garbage, allowed = 0, []
    for fault in faults:
        garbage += fault in ("no JSON", "no choices", "too long")
        allowed.append(fault if garbage < 3 else None)
    after = [None] * 6 + allowed
    with Completions(
        root=str(folder), faults=lambda n: after[n] if n < len(after) else None
    ) as server:
        sampled(engine(folder, server), 12)
        assert all(server.answered[100 + row] == 1 for row in range(12))


def test_a_server_that_dies_comes_back(folder):
    server = Completions(root=str(folder), seconds=0.02)
    running = engine(folder, server, concurrency=2)
    responses, returned = [], []

    def come_back():
        returned.append(Completions(root=str(folder), port=server.port))

    for some in running.sample([[q] for q in requests(40)]):
        responses += some
        if len(responses) >= 10 and not server.stopped:
            server.stop()
            threading.Timer(0.5, come_back).start()
    running.close()
    assert sorted(r.row for r in responses) == list(range(40))
    assert len(returned[0].bodies) >= 25
    returned[0].stop()


@pytest.mark.parametrize("lost", ["busy", "idle"])
def test_a_server_that_comes_back_with_another_model_is_refused(folder, tmp_path, lost):
    server = Completions(root=str(folder), seconds=0.02)
    running = engine(folder, server, concurrency=2)
    (tmp_path / "other").mkdir()
    with pytest.raises(TSpinError, match="this iteration samples from"):
        for _ in running.sample([[q] for q in requests(2000)]):
            if server.models[0]["root"] == str(folder) and len(server.bodies) > 10:
                if lost == "idle":
                    time.sleep(0.5)  # all that was asked for is answered meanwhile
                server.stop()
                time.sleep(SECONDS_TO_RESTART)
                server = Completions(root=str(tmp_path / "other"), port=server.port)
    running.close()
    assert not server.bodies, "nothing was sampled from it"
    server.stop()


def test_the_name_is_asked_with_though_another_request_loses_the_server(folder):
    class Unlucky(ServerEngine):
        def _identify(self, server):
            name = super()._identify(server)
            lost = ServerUnavailable("of another thread")
            lost.lost = True
            server.failed(lost)
            return name

    with Completions(root=str(folder)) as server:
        sampled(engine(folder, server, of=Unlucky), 6)
        assert {body["model"] for body in server.bodies} == {"policy"}


@pytest.mark.parametrize("fault", ["no JSON", "no choices", "too long"])
def test_a_server_that_answers_garbage_is_given_up_and_named(folder, fault):
    with Completions(root=str(folder), faults=lambda n: fault) as server:
        message = failure(lambda: engine(folder, server))
        assert server.url in message and "row" in message and "What was sampled is kept" in message


def test_a_slow_server_is_asked_again_and_then_given_up(folder):
    with Completions(root=str(folder), faults=lambda n: "slow" if n < 2 else None) as server:
        sampled(engine(folder, server, timeout=0.3), 6)
    with Completions(root=str(folder), faults=lambda n: "slow") as server:
        message = failure(lambda: engine(folder, server, timeout=0.2, patience=1.0))
        assert "no answer from" in message and "patience" in message and "is kept" in message


def test_no_server_at_all_is_given_up_after_the_patience(folder):
    with Completions(root=str(folder)) as server:
        url = server.url
    started = time.monotonic()
    assert url in failure(lambda: engine(folder, url, patience=1.0))
    assert time.monotonic() - started < 8


def test_the_served_model_must_be_the_policy(folder, tmp_path, caplog):
    stranger = tmp_path / "iteration_0"
    stranger.mkdir()
    with Completions(root=str(stranger), name="policy") as server:
        message = failure(
            lambda: engine(folder, server, strangers=[stranger], served_model="policy")
        )
        assert "another policy of this run" in message and not server.bodies
        assert "served_model" in failure(lambda: engine(folder, server))
        with caplog.at_level(logging.WARNING):
            sampled(engine(folder, server, served_model="policy"), 3)
        assert caplog.text.count("does not say that 'policy' has the weights") == 1
        assert server.bodies[0]["model"] == "policy"
    caplog.clear()
    with Completions(root=str(folder)) as server, caplog.at_level(logging.WARNING):
        sampled(engine(folder, server), 3)
        assert not caplog.records


def test_a_url_that_serves_something_else_is_named(folder):
    with Completions(root=str(folder)) as server:
        server.models = ["no", "models"]
        assert "does not return a list of models" in failure(lambda: engine(folder, server))
        for page in ((200, b"<html>Welcome</html>"), (302, b"")):
            server.page = page
            message = failure(lambda: engine(folder, server))
            assert f"{server.url}/models does not return a list of models" in message


def test_the_key_is_sent_and_never_shown(folder, monkeypatch, caplog):
    keys = {"api_key_env": "TSPIN_TEST_KEY"}
    with Completions(root=str(folder), key=KEY) as server, caplog.at_level(logging.DEBUG):
        assert "TSPIN_TEST_KEY" in failure(lambda: engine(folder, server, **keys))
        monkeypatch.setenv("TSPIN_TEST_KEY", KEY)
        sampled(engine(folder, server, **keys), 5)
        assert "api_key_env" in failure(lambda: engine(folder, server))
        monkeypatch.setenv("TSPIN_TEST_KEY", KEY + "-wrong")
        message = failure(lambda: engine(folder, server, **keys))
        assert "401" in message and KEY not in message
    assert KEY not in caplog.text


def test_requests_in_flight_are_bounded_and_the_fleet_shares_them(folder):
    with (
        Completions(root=str(folder), seconds=0.02) as one,
        Completions(root=str(folder), seconds=0.02) as two,
    ):
        sampled(engine(folder, one, two, concurrency=3), 60)
        assert one.most <= 3 and two.most <= 3
        assert min(len(one.bodies), len(two.bodies)) > 15


def test_a_fleet_goes_on_without_the_server_that_it_lost(folder):
    one = Completions(root=str(folder), seconds=0.02)
    with Completions(root=str(folder), seconds=0.02) as two:
        running = engine(folder, one, two, concurrency=2)
        responses = []
        for some in running.sample([[q] for q in requests(40)]):
            responses += some
            if len(responses) >= 8 and not one.stopped:
                one.stop()
        running.close()
        assert sorted(r.row for r in responses) == list(range(40))
        assert len(two.bodies) >= 28


def test_a_server_of_our_own_is_started_awaited_and_ended(folder, tmp_path):
    with Completions(root=str(folder)) as free:
        port = free.port
    script = SCRIPTS / "completions_server.py"
    note = tmp_path / "pid"
    command = f"sh -c 'echo $$ > {note}; {sys.executable} {script} {port} {{model}}; true'"
    running = engine(folder, f"http://127.0.0.1:{port}/v1", server_command=command)
    responses = [r for some in running.sample([[q] for q in requests(5)]) for r in some]
    assert sorted(r.row for r in responses) == list(range(5))
    running.close()
    listed = ["ps", "-o", "stat=", "-g", note.read_text().strip()]
    left = subprocess.run(listed, capture_output=True, text=True).stdout.split()
    assert all(state.startswith("Z") for state in left), "nothing of the group runs on"


def test_a_server_command_that_ends_is_told_with_its_status(folder):
    with Completions(root=str(folder)) as free:
        url = free.url
    message = failure(lambda: engine(folder, url, server_command="sh -c 'exit 3'"))
    assert "server_command" in message and "status 3" in message
    assert "cannot be run" in failure(lambda: engine(folder, url, server_command="/no/such"))
    message = failure(lambda: engine(folder, url, server_command="vllm serve '{model}"))
    assert "is not a shell command (No closing quotation)" in message


def test_other_braces_of_a_server_command_are_left_alone(folder, tmp_path):
    write = f"import sys, json; json.dump(sys.argv[1:], open('{tmp_path}/seen', 'w'))"
    other = '{"a": {}, "b": {0}}'
    command = shlex.join([sys.executable, "-c", write, "{model}", other, "{adapter}"])
    assert start_server(command, Policy(str(folder), "/adapter")).wait(60) == 0
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen == [str(folder), other, "/adapter"]


def test_a_server_of_our_own_ends_with_a_killed_process(folder, tmp_path):
    code = (
        "import sys, time\n"
        "from axolotl_tspin.generation.engines.server_process import start_server\n"
        "from axolotl_tspin.run.directory import Policy\n"
        "process = start_server('sleep 600', Policy('m')); print(process.pid, flush=True)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{child}/stat").exists():
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not os.path.exists(f"/proc/{child}")
