"""Interface between the generation step and an engine."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, Protocol


class Request(NamedTuple):
    """A prompt to be answered.

    Attributes:
        row: identifies the request.
        prompt_ids: the prompt's token ids.
        max_new_tokens: most tokens, the stop token included.
        seed: seed of the sampling, below 2³¹.
        stop_ids: tokens, each of which ends the response.
    """

    row: int
    prompt_ids: list[int]
    max_new_tokens: int
    seed: int
    stop_ids: tuple[int, ...]


class Response(NamedTuple):
    """A sampled response: its tokens without the stop token, and the stop token that ended it; None
    if it was cut."""

    row: int
    ids: list[int]
    stop_id: int | None

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        return "length" if self.stop_id is None else "stop"


class Engine(Protocol):
    """Answers a stream of requests.

    Attributes:
        name: name and version, as recorded with each response.
        group_size: number of requests that are answered together. To get the same responses, the
            same requests must be asked together again.
        on_tokens: called with numbers of decoded tokens while a group is answered, by engines whose
            groups take long.
    """

    name: str
    group_size: int
    on_tokens: Callable[[int], None] | None

    def sample(self, groups: Iterable[list[Request]]) -> Iterator[list[Response]]:
        """Yield responses in any order, as soon as they are there; equal groups get equal ones.

        Groups are taken from the iterable no faster than the engine can work on them.
        """
        ...

    def close(self) -> None:
        """Release the engine's resources."""
        ...
