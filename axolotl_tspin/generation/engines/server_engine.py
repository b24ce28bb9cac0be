"""Engine for servers with OpenAI's completions API (vLLM, SGLang, …)."""

import contextlib
import functools
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, Field, NonNegativeInt
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.engines.engine import Request, Response
from axolotl_tspin.generation.engines.responses import UnusableAnswer, response_from_ids
from axolotl_tspin.generation.engines.server_process import start_server, stop_server
from axolotl_tspin.logs import get_logger
from axolotl_tspin.run.directory import Policy

LOG = get_logger(__name__)

LONGEST_PAUSE = 30.0  # seconds
GARBAGE_ALLOWED = 3  # unreadable answers to one request before the engine gives up

SECONDS_TO_RESTART = 1.0  # no server comes back with another model sooner


class ServerUnavailable(Exception):
    """A failure that may pass: no connection, a time limit, 408, 429, 5xx."""

    retry_after: float = 0.0
    lost: bool = False  # it may be another server when it answers again


class Choice(BaseModel):
    """Fields read of a completion. `token_ids` comes from servers that know `return_token_ids`."""

    finish_reason: str
    text: str
    token_ids: list[NonNegativeInt] | None = None


class Completion(BaseModel):
    choices: list[Choice] = Field(min_length=1, max_length=1)


class Server:
    """One endpoint: its number of requests in flight, and its name for the policy."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.in_flight = 0
        self.model: str | None = None  # None: not known, or to be asked again
        self.answered_at = 0.0
        self.failures = 0  # since then
        self.asked_again_at = 0.0  # until then, requests go to other servers

    def serves(self, model: str) -> None:
        self.model, self.answered_at = model, time.monotonic()

    def known_model(self) -> str | None:
        """The name of the policy, or None where the server may be another one since its last
        answer: a client that waits does not see its idle connections close."""
        silent = time.monotonic() - self.answered_at
        return self.model if silent < SECONDS_TO_RESTART else None

    def failed(self, error: ServerUnavailable) -> None:
        self.failures += 1
        pause = error.retry_after
        if error.lost:
            self.model = None
            pause = min(2.0 ** (self.failures - 2), LONGEST_PAUSE)
        self.asked_again_at = time.monotonic() + pause


class ServerEngine:
    """Answers through a fleet of servers, each with a bounded number of requests in flight.

    A request that fails for a reason that may pass is sent again, after a pause, to the least busy
    server that works. A server that was lost, or silent for long enough to restart, is asked again
    which model it serves.

    Args:
        policy: the policy that the servers must serve.
        strangers: folders of the run's other policies, which they must not serve.
        tokenize: turns a response's text into token ids, given its prompt's, for servers that
            return no ids.
    """

    group_size = 1
    name = "server"
    on_tokens: Callable[[int], None] | None = None

    def __init__(
        self,
        config: GenerationConfig,
        *,
        policy: Policy,
        strangers: Sequence[Path],
        tokenize: Callable[[Sequence[int], str], list[int]],
    ) -> None:
        self._config = config
        self._policy = policy
        self._strangers = [path.resolve() for path in strangers]
        self._tokenize = tokenize
        self._servers = [Server(url) for url in config.servers]
        self._lock = threading.Lock()
        self._answered = time.monotonic()
        self._stopped = threading.Event()
        self._warned: set[str] = set()
        # httpx would log a line for every request.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        slots = config.concurrency * len(self._servers)
        self._client = httpx.Client(
            headers=_key_header(config.api_key_env),
            timeout=httpx.Timeout(config.timeout, connect=min(10.0, config.timeout)),
            limits=httpx.Limits(max_connections=slots, max_keepalive_connections=slots),
        )
        self._pool = ThreadPoolExecutor(max_workers=slots)
        self._slots = slots
        command = config.server_command
        self._process = start_server(command, policy) if command else None
        try:
            for server in self._servers:
                self._persistently(functools.partial(self._identify, server))
            self.name = self._fleet_name()
        except BaseException:
            self.close()
            raise

    def sample(self, groups: Iterable[list[Request]]) -> Iterator[list[Response]]:
        requests = (request for group in groups for request in group)
        self._answered = time.monotonic()
        pending: set[Future[Response]] = set()
        for request in requests:
            pending.add(self._pool.submit(self._answer, request))
            # One request more than slots is pending, so that no slot waits for us.
            if len(pending) > self._slots:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield [future.result() for future in done]
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield [future.result() for future in done]

    def close(self) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        if self._process:
            stop_server(self._process)

    def _answer(self, request: Request) -> Response:
        garbage = itertools.count(1)

        def attempt() -> Response:
            server = self._take()
            try:
                # A local copy: another request that loses the server resets `server.model`.
                model = server.known_model() or self._identify(server)
                answer = self._ask(server, model, request)
                with self._lock:
                    self._answered = server.answered_at = time.monotonic()
                    server.failures, server.asked_again_at = 0, 0.0
                return answer
            except ServerUnavailable as error:
                with self._lock:
                    server.failed(error)
                raise
            except ValueError as error:
                if isinstance(error, TSpinError) and not isinstance(error, UnusableAnswer):
                    raise
                if next(garbage) >= GARBAGE_ALLOWED:
                    raise TSpinError(
                        f"{server.url} returned an invalid completion for row {request.row} "
                        f"({_short(error)}). What was sampled is kept: check the server, and "
                        "run the same command again"
                    ) from error
                raise ServerUnavailable(_short(error)) from error
            finally:
                with self._lock:
                    server.in_flight -= 1

        return self._persistently(attempt)

    def _ask(self, server: Server, model: str, request: Request) -> Response:
        """Request one completion; ValueError (also pydantic's) or UnusableAnswer if it is bad."""
        answer = self._http(
            server,
            "POST",
            "completions",
            {
                "model": model,
                "prompt": request.prompt_ids,
                "max_tokens": request.max_new_tokens,
                "seed": request.seed,
                "temperature": self._config.temperature,
                "top_p": self._config.top_p,
                "stop_token_ids": list(request.stop_ids),
                "return_token_ids": True,
            },
        )
        [choice] = Completion.model_validate(answer).choices
        if choice.token_ids is not None:
            return response_from_ids(request, choice.token_ids, choice.finish_reason)
        self._warn_once(
            f"{server.url} gives no token ids: its responses are tokenised from their text, which "
            "can differ from what was sampled"
        )
        ids = self._tokenize(request.prompt_ids, choice.text)
        if choice.finish_reason == "length":
            return Response(request.row, ids[: request.max_new_tokens], None)
        return response_from_ids(request, [*ids, request.stop_ids[0]], choice.finish_reason)

    def _identify(self, server: Server) -> str:
        """Find and remember the name under which a server serves the policy.

        Raises:
            TSpinError: it serves something else.
            UnusableAnswer: its answer is not a list of models, as from a gateway that is not ready.
        """
        try:
            answer = self._http(server, "GET", "models")
            models = [(str(m["id"]), m.get("root")) for m in answer["data"]]
        except TSpinError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UnusableAnswer(
                f"{server.url}/models does not return a list of models; `servers` takes base URLs "
                "such as http://node1:8000/v1"
            ) from error
        wanted = self._policy.adapter_dir or self._policy.base_model
        serving = ", ".join(
            f"'{name}'" + (f" from {root}" if root else "") for name, root in models
        )
        for name, root in models:
            if root and _same_place(root, wanted):
                server.serves(name)
                return name
        if any(root and _resolved(root) in self._strangers for _, root in models):
            raise TSpinError(
                f"{server.url} serves {serving}, another policy of this run; this iteration "
                f"samples from {wanted}. Start the server with that, and run the same command "
                "again"
            )
        names = [name for name, _ in models]
        if self._config.served_model not in names:
            raise TSpinError(
                f"{server.url} serves {serving}; this iteration samples from {wanted}. Start the "
                "server with that, or, if it has the same weights under another name, set that "
                "name with `t_spin.generation.served_model`"
            )
        self._warn_once(
            f"{server.url} does not say that '{self._config.served_model}' has the weights of "
            f"{wanted}; `served_model` says so"
        )
        server.serves(self._config.served_model)
        return self._config.served_model

    def _http(
        self, server: Server, method: str, path: str, body: dict[str, Any] | None = None
    ) -> Any:
        """Send a request and read its JSON answer.

        Raises:
            ServerUnavailable: a later attempt may succeed.
            TSpinError: a later attempt would fail too.
            ValueError: the answer is not JSON.
        """
        url = f"{server.url}/{path}"
        try:
            answer = self._client.request(method, url, json=body)
        except httpx.TransportError as error:
            unavailable = ServerUnavailable(f"{url}: {type(error).__name__} {error}")
            unavailable.lost = True
            raise unavailable from error
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            unavailable = ServerUnavailable(f"{url}: status {answer.status_code}")
            # A gateway returns these while the server behind it is replaced.
            unavailable.lost = answer.status_code in (502, 503, 504)
            with contextlib.suppress(ValueError):
                unavailable.retry_after = float(answer.headers.get("retry-after", 0))
            raise unavailable
        if answer.is_error:
            hint = (
                "; name the environment variable that holds the key with "
                "`t_spin.generation.api_key_env`"
                if answer.status_code in (401, 403)
                else ""
            )
            raise TSpinError(
                f"{url} refuses the request with status {answer.status_code}: "
                f"{answer.text[:300]}{hint}"
            )
        return answer.json()

    def _persistently(self, attempt: Callable[[], Any]) -> Any:
        """Try until an attempt succeeds, with growing pauses, as long as some server answered
        within the last `patience` seconds."""
        started = time.monotonic()

        def give_up(state: RetryCallState) -> bool:
            since = time.monotonic() - max(started, self._answered)
            return self._stopped.is_set() or since > self._config.patience

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = getattr(error, "retry_after", 0.0)
            backoff = wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE)(state)
            return max(min(asked, self._config.patience), backoff)

        def look(state: RetryCallState) -> None:
            if self._process and self._process.poll() is not None:
                raise TSpinError(
                    f"`t_spin.generation.server_command` ended with status "
                    f"{self._process.returncode}; its own output is above"
                )
            if state.attempt_number in (1, 5) or state.attempt_number % 20 == 0:
                error = state.outcome.exception() if state.outcome else None
                LOG.info("T-SPIN: trying again: %s", _short(error))

        retrying = Retrying(
            retry=retry_if_exception_type(ServerUnavailable),
            stop=give_up,
            wait=pause,
            before_sleep=look,
            sleep=self._pause,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except ServerUnavailable as error:
            raise TSpinError(
                f"no answer from {', '.join(s.url for s in self._servers)} for "
                f"{self._config.patience:.0f} s (last: {error}). What was sampled is kept: run the "
                "same command again when they are back, or raise `t_spin.generation.patience`"
            ) from error

    def _pause(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _take(self) -> Server:
        """Choose the least busy server. One that failed gets no requests for a while, and then a
        single one."""
        now = time.monotonic()
        with self._lock:
            ready = [s for s in self._servers if s.asked_again_at <= now]
            if ready:
                server = min(ready, key=lambda s: s.in_flight)
            else:
                server = min(self._servers, key=lambda s: s.asked_again_at)
            if server.failures:
                server.asked_again_at = now + self._config.timeout
            server.in_flight += 1
            return server

    def _fleet_name(self) -> str:
        """Name the engine "server", with the version that the first server reports."""
        with contextlib.suppress(ServerUnavailable, TSpinError, ValueError, KeyError, TypeError):
            root = Server(self._servers[0].url.removesuffix("/v1"))
            return f"server (vllm {self._http(root, 'GET', 'version')['version']})"
        return "server"

    def _warn_once(self, message: str) -> None:
        with self._lock:
            if message in self._warned:
                return
            self._warned.add(message)
        LOG.warning("T-SPIN: %s", message)


def _key_header(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise TSpinError(
            f"the environment variable {variable}, named by `t_spin.generation.api_key_env`, is "
            "not set"
        )
    return {"Authorization": f"Bearer {key}"}


def _resolved(place: str) -> Path | None:
    return Path(place).resolve() if Path(place).exists() else None


def _same_place(root: str, wanted: str) -> bool:
    """True if a server's model folder or hub name is the wanted one."""
    return root == wanted or (_resolved(root) is not None and _resolved(root) == _resolved(wanted))


def _short(error: BaseException | None) -> str:
    return " ".join(str(error).split())[:300]
