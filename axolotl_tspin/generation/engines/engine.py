"""What the generation step asks of an engine, and the engines by name."""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, Protocol


class Request(NamedTuple):
    """A prompt to be answered.

    Attributes:
        row: names the request.
        prompt_ids: the prompt's token ids.
        max_new_tokens: the stop token included.
        seed: of the sampling, below 2³¹.
        stop_ids: tokens any of which ends the response.
    """

    row: int
    prompt_ids: list[int]
    max_new_tokens: int
    seed: int
    stop_ids: tuple[int, ...]


class Response(NamedTuple):
    """A sampled response: its tokens without the stop token, and why it ended."""

    row: int
    ids: list[int]
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """Answers a stream of requests.

    Attributes:
        name: as recorded with each response, with the version.
        group_size: how many requests are answered together and must be asked together again for
            the same responses.
    """

    name: str
    group_size: int

    def sample(self, groups: Iterable[list[Request]]) -> Iterator[list[Response]]:
        """Responses in any order, each as soon as it is there, the same for the same groups.

        Takes groups from the iterable no faster than it can work on them.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds."""
        ...
