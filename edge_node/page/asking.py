"""Questions that the pages' own scripts ask, and the trainer's answers to them."""

import json
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cairn.errors import CairnError, TrainingError

QUESTION = 4096  # bytes


async def question(request: Request) -> dict[str, object]:
    """Read a small JSON object. A page elsewhere cannot send this type without asking, and is not answered."""
    if request.headers.get("content-type") != "application/json":
        raise HTTPException(415)
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > QUESTION:
        raise HTTPException(413)
    try:
        asked = json.loads(await request.body())
    except ValueError as error:
        raise HTTPException(400) from error
    if not isinstance(asked, dict):
        raise HTTPException(400)
    return asked


async def answered(ask: Callable[[], dict[str, object]], headers: dict[str, str]) -> Response:
    """Ask the trainer; of what it cannot answer the page gets a sentence."""
    try:
        return JSONResponse(await run_in_threadpool(ask), headers=headers)
    except CairnError as error:
        status = 422 if isinstance(error, TrainingError) else 503
        return JSONResponse({"sentence": str(error)}, status, headers=headers)
