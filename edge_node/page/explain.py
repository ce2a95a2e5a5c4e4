"""The page where a clinician sees what a model says of an image, and what that rests on."""

from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from edge_node.page.asking import answered, question
from edge_node.training.trainer import Trainer


def explain_routes(trainer: Trainer, page: Callable[[], str], headers: dict[str, str]) -> list[Route]:
    """Make the routes: the page, and what its script asks for. Images are those that the trainer lists, by its names.

    page     renders the page
    headers  of every answer
    """

    def show(_: Request) -> Response:
        return HTMLResponse(page(), headers=headers)

    async def images(request: Request) -> Response:
        asked = await question(request)
        run, part = asked.get("run"), asked.get("part", "")
        if not (isinstance(run, str | None) and isinstance(part, str)):
            raise HTTPException(400)
        return await answered(lambda: trainer.classifiers(run, part).model_dump(exclude={"event", "id"}), headers)

    async def answer(request: Request) -> Response:
        asked = await question(request)
        run, image = asked.get("run"), asked.get("image")
        if not (isinstance(run, str) and isinstance(image, str)):
            raise HTTPException(400)
        return await answered(lambda: trainer.explain(run, image).model_dump(exclude={"event", "id"}), headers)

    return [
        Route("/explain", show),
        Route("/explain/images", images, methods=["POST"]),
        Route("/explain/answer", answer, methods=["POST"]),
    ]
