"""The page where a clinician clicks a start on an image and watches the agent's search."""

from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from edge_node.page.asking import answered, question
from edge_node.training.trainer import Trainer


def search_routes(trainer: Trainer, page: Callable[[], str], headers: dict[str, str]) -> list[Route]:
    """Make the routes: the page, and what its script asks for.

    page     renders the page
    headers  of every answer
    """

    def show(_: Request) -> Response:
        return HTMLResponse(page(), headers=headers)

    async def scenes(_: Request) -> Response:
        return await answered(lambda: trainer.scenes().model_dump(exclude={"event", "id"}), headers)

    async def image(request: Request) -> Response:
        asked = await question(request)
        name, depth = asked.get("image"), asked.get("slice", 0)
        if not (isinstance(name, str) and isinstance(depth, int)):
            raise HTTPException(400)
        return await answered(lambda: trainer.picture(name, depth).model_dump(exclude={"event", "id"}), headers)

    async def path(request: Request) -> Response:
        asked = await question(request)
        run, task, name, start = asked.get("run"), asked.get("task"), asked.get("image"), asked.get("start")
        if not (isinstance(run, str | None) and isinstance(task, str) and isinstance(name, str) and _is_point(start)):
            raise HTTPException(400)
        place = tuple(float(x) for x in start) if isinstance(start, list) else ()
        return await answered(
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
