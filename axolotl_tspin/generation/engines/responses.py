"""Conversion of an engine's answer to a response."""

from collections.abc import Sequence

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.engines.engine import Request, Response


class UnusableAnswer(TSpinError):
    """An engine's answer that is not a response to the request."""


def response_from_ids(request: Request, ids: Sequence[int], finish_reason: object) -> Response:
    """Make a response from tokens that include the stop token.

    Raises:
        UnusableAnswer: they are not a response to this request.
    """
    if finish_reason not in ("stop", "length"):
        raise UnusableAnswer(
            f"row {request.row}: the engine ended the response with {finish_reason!r} instead of "
            "'stop' or 'length'; its own log says more"
        )
    if finish_reason == "length":
        if len(ids) != request.max_new_tokens:
            raise UnusableAnswer(
                f"row {request.row}: the engine cut the response at {len(ids)} tokens instead of "
                f"{request.max_new_tokens}; is its context shorter than `sequence_len`?"
            )
        return Response(request.row, list(ids), None)
    if not ids or ids[-1] not in request.stop_ids:
        raise UnusableAnswer(
            f"row {request.row}: the engine ended the response with the token "
            f"{ids[-1] if ids else None}, which is not one of {list(request.stop_ids)}"
        )
    return Response(request.row, list(ids[:-1]), ids[-1])
