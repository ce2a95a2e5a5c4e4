"""The page where a clinician clicks a start on an image and watches the agent's search."""

import json
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from cairn.errors import CairnError, TrainingError
from edge_node.training.trainer import Trainer

QUESTION = 4096  # bytes


def search_routes(trainer: Trainer, page: Callable[[], str], headers: dict[str, str]) -> list[Route]:
    """Make the routes: the page, and what its script asks for.

    page     renders the page
    headers  of every answer
    """

    def show(_: Request) -> Response:
        return HTMLResponse(page(), headers=headers)

    async def scenes(_: Request) -> Response:
        return await _answered(lambda: trainer.scenes().model_dump(exclude={"event", "id"}), headers)

    async def image(request: Request) -> Response:
        asked = await _question(request)
        name, depth = asked.get("image"), asked.get("slice", 0)
        if not (isinstance(name, str) and isinstance(depth, int)):
            raise HTTPException(400)
        return await _answered(lambda: trainer.picture(name, depth).model_dump(exclude={"event", "id"}), headers)

    async def path(request: Request) -> Response:
        asked = await _question(request)
        run, task, name, start = asked.get("run"), asked.get("task"), asked.get("image"), asked.get("start")
        if not (isinstance(run, str | None) and isinstance(task, str) and isinstance(name, str) and _is_point(start)):
            raise HTTPException(400)
        place = tuple(float(x) for x in start) if isinstance(start, list) else ()
        return await _answered(
            lambda: trainer.search(run, task, name, place).model_dump(exclude={"event", "id"}), headers
        )

    return [
        Route("/search", show),
        Route("/search/scenes", scenes),
        Route("/search/image", image, methods=["POST"]),
        Route("/search/path", path, methods=["POST"]),
    ]


def _is_point(start: object) -> bool:
    return (
        isinstance(start, list)
        and len(start) in (2, 3)
        and all(isinstance(x, int | float) and abs(x) < 1e9 for x in start)
    )


async def _question(request: Request) -> dict[str, object]:
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


async def _answered(ask: Callable[[], dict[str, object]], headers: dict[str, str]) -> Response:
    try:
        return JSONResponse(await run_in_threadpool(ask), headers=headers)
    except CairnError as error:
        status = 422 if isinstance(error, TrainingError) else 503
        return JSONResponse({"sentence": str(error)}, status, headers=headers)
