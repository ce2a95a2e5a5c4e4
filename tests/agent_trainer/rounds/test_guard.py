import asyncio

import flwr
import pytest

from agent_trainer.rounds import flower
from agent_trainer.rounds.daemons import IDLE, Pace
from agent_trainer.rounds.guard import BODY_LIMIT, HEADER, Guard, token

SECRET = b"the executors' secret"


def ask(path, *, shown=None, parts=(b"abc",)):
    """Send a request through the guard; returns the status and the body that the app behind it was given."""
    given, said = [], []

    async def app(scope, receive, send):
        message = await receive()
        given.append((message["body"], message["more_body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    waiting = [{"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)]

    async def receive():
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message):
        said.append(message)

    headers = [] if shown is None else [(HEADER.encode(), shown.encode())]
    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(Guard(app, token(SECRET))(scope, receive, send))
    return said[0]["status"] if said else None, given


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/health"])
def test_the_signed_api_and_the_health_are_open(path):
    assert ask(path)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/openapi.json", "/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task"],
)
def test_everything_else_needs_the_token(path):
    assert ask(path) == (404, [])
    assert ask(path, shown="guessed")[0] == 404
    assert ask(path, shown=token(b"another secret"))[0] == 404
    assert ask(path, shown=token(SECRET))[0] == 200


def test_a_body_is_handed_on_in_one_piece():
    assert ask("/v1/fleet/push-object", parts=(b"ab", b"", b"cd"))[1] == [(b"abcd", False)]


def test_a_body_over_the_limit_is_refused_before_it_is_in_memory():
    piece = bytes(BODY_LIMIT // 4)
    assert ask("/v1/fleet/push-object", parts=(piece,) * 40) == (413, [])


def test_a_caller_that_goes_away_in_mid_body_is_not_handed_on():
    parts = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return parts.pop(0)

    async def never(*_):
        raise AssertionError("handed on")

    asyncio.run(Guard(never, token(SECRET))({"type": "http", "path": "/health", "headers": []}, receive, never))


def test_a_supernode_asks_often_after_a_reply_and_then_ever_more_seldom():
    pace = Pace(quick_s=0.25, idle_s=3.0, reply_s=0.05)
    assert pace.wait_s(3, now=100.0) == 3.0, "nothing has happened yet"
    assert pace.wait_s(0.5, now=101.0) == 0.05, "an app is at work"
    assert [pace.wait_s(3, now=101.0 + later) for later in (0, 10, 3600)] == [0.25, 1.25, 3.0]


def test_what_is_pinned_is_what_is_installed():
    """The insides that these files use, and the middlewares that daemons.py leaves out, are those of one version."""
    from flwr.superlink import main

    assert flwr.__version__ == flower.PINNED
    names = {layer.cls.__name__ for layer in main._get_middleware()}
    assert names >= IDLE
    assert names - IDLE == {
        "BaseHTTPMiddleware",
        "ControlAuthenticationMiddleware",
        "ProtobufTranslationMiddleware",
        "NodeAuthMiddleware",
    }


def test_the_shell_app_is_the_same_bytes_everywhere_and_holds_no_code():
    assert flower.bundle() == flower.bundle()
    assert b".py" not in flower.bundle()
