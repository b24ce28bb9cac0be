"""Packages and interpreters that stand in for those of trackers and of vLLM, which are not here."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def install(site: Path, name: str, source: str = "", version: str = "1.0") -> None:
    """Puts a package into a folder, as pip would."""
    (site / name).mkdir(parents=True)
    (site / name / "__init__.py").write_text(source)
    about = site / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def interpreter(folder: Path, version: str | None = None, body: str | None = None) -> str:
    """An interpreter that has vLLM of this version, or none; or a script in place of one."""
    site = folder / "site"
    if version:
        install(site, "vllm", "raise ImportError('must not be imported')", version)
    path = folder / "bin" / "python"
    path.parent.mkdir(parents=True)
    as_usual = f'PYTHONPATH={site} exec {sys.executable} -S "$@"'  # only what is in there
    path.write_text(f"#!/bin/sh\n{body or as_usual}\n")
    path.chmod(0o755)
    return str(path)


@contextmanager
def web_server(status: int, answer: object) -> Iterator[str]:
    """Gives every GET this answer; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def nobody_logged_in(monkeypatch, home: Path) -> None:
    """An environment without any key, token or settings."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "COMET_", "TRACKIO_", "HF_TOKEN")):
            monkeypatch.delenv(name)
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(home / "token"))
