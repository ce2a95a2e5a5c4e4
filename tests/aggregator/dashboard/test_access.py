"""Who gets in, for how long, and who does not."""

import json
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from aggregator import audit_log
from aggregator.dashboard import make_app
from aggregator.dashboard.access import LIFETIME, TRIES, TRIES_WITHIN, Access
from aggregator.dashboard.guard import COOKIE, HEADERS, STRICT_POLICY
from aggregator.database import reading, writing
from aggregator.members.tokens import new_dashboard_token, token_hash
from aggregator.tables import Member

Visit = Callable[..., httpx.Client]
HTML = {"accept": "text/html"}
CLOSED = ["/", "/sites", "/audit", "/studies/melanoma-states", "/studies/none", "/nowhere", "/studies/x/embedding.json"]


@pytest.mark.parametrize("path", CLOSED)
def test_no_page_opens_without_signing_in(visitor: httpx.Client, path: str) -> None:
    answer = visitor.get(path, headers=HTML)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login")
    assert visitor.get(path, headers={"accept": "application/json"}).status_code == 401


def test_a_wrong_token_is_told_so_and_gets_no_cookie(visitor: httpx.Client) -> None:
    answer = visitor.post("/login", data={"token": "not-the-token"})
    assert answer.status_code == 401
    assert "does not open" in answer.text
    assert "set-cookie" not in answer.headers
    assert "not-the-token" not in answer.text


def test_the_right_token_leads_to_the_page_that_was_asked_for(visitor: httpx.Client, filled: Any) -> None:
    door = visitor.get("/studies/lung-map?window=0", headers=HTML).headers["location"]
    assert 'value="/studies/lung-map?window=0"' in visitor.get(door).text
    answer = visitor.post("/login", data={"token": filled.token, "next": "/studies/lung-map?window=0"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/studies/lung-map?window=0")
    assert visitor.get("/", headers=HTML).status_code == 200


def test_the_session_cookie_is_for_this_site_and_no_script(visitor: httpx.Client, filled: Any) -> None:
    cookie = visitor.post("/login", data={"token": filled.token}).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie
    # A proxy on this machine speaks TLS to the world and says so.
    answer = visitor.post("/login", data={"token": filled.token}, headers={"x-forwarded-proto": "https"})
    assert "secure" in answer.headers["set-cookie"].lower()
    assert "max-age" in answer.headers["strict-transport-security"]


@pytest.mark.parametrize(
    "way", ["//evil.example/", "/\\evil.example", "https://evil.example/", "javascript:alert(1)", "/\n/x"]
)
def test_signing_in_never_leads_away_from_the_dashboard(visitor: httpx.Client, filled: Any, way: str) -> None:
    answer = visitor.post("/login", data={"token": filled.token, "next": way})
    assert answer.headers["location"] == "/"


def test_an_expired_cookie_opens_nothing(operator: httpx.Client, filled: Any) -> None:
    filled.clock.now += LIFETIME - timedelta(seconds=1)
    assert operator.get("/", headers=HTML).status_code == 200
    filled.clock.now += timedelta(seconds=1)
    assert operator.get("/", headers=HTML).status_code == 303


def test_a_cookie_with_any_part_changed_opens_nothing(operator: httpx.Client) -> None:
    cookie = operator.cookies[COOKIE]
    assert operator.get("/", headers=HTML).status_code == 200
    parts = cookie.split(".")
    later = [parts[0], str(int(parts[1]) + 3600), *parts[2:]]
    flipped = [cookie[:i] + ("0" if cookie[i] != "0" else "1") + cookie[i + 1 :] for i in range(0, len(cookie), 5)]
    for forged in [".".join(later), *flipped, "", "a.b.c.d", "....", "\u00e9", cookie + "x", cookie[:-1]]:
        operator.cookies.clear()
        answer = operator.get("/", headers={**HTML, "cookie": f"{COOKIE}={forged}".encode()})
        assert answer.status_code == 303, forged


def test_a_cookie_sealed_with_another_token_opens_nothing(filled: Any) -> None:
    stranger = Access(lambda: {token_hash("another"): "stranger"}, filled.clock)
    cookie = stranger.sign_in("another", "10.0.0.1")
    assert cookie is not None
    assert stranger.session(cookie) is not None
    assert Access(lambda: {token_hash(filled.token): "operator"}, filled.clock).session(cookie) is None


def test_after_signing_out_the_same_cookie_opens_nothing(operator: httpx.Client) -> None:
    cookie = operator.cookies[COOKIE]
    assert operator.post("/logout").headers["location"] == "/login"
    assert COOKIE not in operator.cookies
    operator.cookies[COOKIE] = cookie
    assert operator.get("/", headers=HTML).status_code == 303


def test_an_operators_own_token_opens_and_stops_opening_when_the_operator_is_revoked(
    visitor: httpx.Client, filled: Any
) -> None:
    token = new_dashboard_token(filled.engine, "anna-lindqvist", filled.clock())
    assert visitor.post("/login", data={"token": f" {token}\n"}).status_code == 303
    assert "anna-lindqvist" in visitor.get("/", headers=HTML).text
    with writing(filled.engine) as session:
        member = session.get(Member, "anna-lindqvist")
        assert member is not None
        member.state = "revoked"
    assert visitor.get("/", headers=HTML).status_code == 303


def test_a_session_survives_a_restart_of_the_aggregator(operator: httpx.Client, filled: Any, visit: Visit) -> None:
    again = visit(make_app(filled.engine, filled.store, token_hash(filled.token), filled.registry, filled.clock))
    assert again.get("/", headers=HTML).status_code == 303
    again.cookies = operator.cookies
    assert again.get("/", headers=HTML).status_code == 200


def test_after_too_many_wrong_tokens_even_the_right_one_must_wait(visitor: httpx.Client, filled: Any) -> None:
    for _ in range(TRIES):
        assert visitor.post("/login", data={"token": "wrong"}).status_code == 401
    answer = visitor.post("/login", data={"token": filled.token})
    assert answer.status_code == 429
    assert "try again in 300 s" in answer.text
    filled.clock.now += TRIES_WITHIN
    assert visitor.post("/login", data={"token": filled.token}).status_code == 303


def test_wrong_tokens_from_one_address_do_not_shut_out_another(filled: Any, visit: Visit) -> None:
    guesser = visit(filled.app, "127.0.0.9")
    for _ in range(TRIES + 1):
        answer = guesser.post("/login", data={"token": "wrong"})
    assert answer.status_code == 429
    other = visit(filled.app, "127.0.0.8")
    assert other.post("/login", data={"token": filled.token}).status_code == 303


def test_a_form_from_another_page_neither_signs_in_nor_out(operator: httpx.Client, filled: Any) -> None:
    foreign = {"origin": "https://evil.example"}
    assert operator.post("/login", data={"token": filled.token}, headers=foreign).status_code == 403
    assert operator.post("/logout", headers=foreign).status_code == 403
    assert operator.get("/", headers=HTML).status_code == 200


def test_a_form_longer_than_a_token_can_be_is_not_read(visitor: httpx.Client) -> None:
    assert visitor.post("/login", data={"token": "x" * 100_000}).status_code == 413


@pytest.mark.parametrize("path", ["/", "/login", "/healthz", "/metrics", "/static/cairn.css", "/nowhere", "/sites"])
def test_every_answer_carries_the_security_headers(operator: httpx.Client, path: str) -> None:
    answer = operator.get(path, headers=HTML)
    for name in HEADERS.keys() - {"cache-control"}:
        assert answer.headers[name] == HEADERS[name]
    assert "cache-control" in answer.headers


def test_an_answer_to_an_unforeseen_failure_tells_nothing_and_carries_the_headers(filled: Any, visit: Visit) -> None:
    class Broken(Collector):
        def describe(self) -> Iterable[Metric]:
            return []

        def collect(self) -> Iterable[Metric]:
            raise RuntimeError("the secret inside")

    filled.registry.register(Broken())
    answer = visit(filled.app).get("/metrics")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["content-security-policy"] == STRICT_POLICY


def test_no_policy_lets_an_inline_script_run(operator: httpx.Client) -> None:
    for path in ["/", "/studies/melanoma-states", "/studies/lung-map"]:
        policy = operator.get(path, headers=HTML).headers["content-security-policy"]
        scripts = next(part for part in policy.split(";") if part.strip().startswith("script-src"))
        assert "unsafe-inline" not in scripts
        assert "default-src 'none'" in policy
        assert ("unsafe-eval" in scripts) == path.startswith("/studies/")


def test_pages_are_only_read(operator: httpx.Client) -> None:
    for path in ["/", "/sites", "/audit", "/studies/melanoma-states", "/metrics"]:
        for method in ["POST", "PUT", "PATCH", "DELETE"]:
            assert operator.request(method, path).status_code == 405, (method, path)


def test_metrics_can_be_kept_behind_the_door(filled: Any, visit: Visit) -> None:
    closed = make_app(filled.engine, filled.store, "", filled.registry, filled.clock, open_metrics=False)
    assert "cairn_uploads_total 17.0" in visit(filled.app).get("/metrics").text
    assert visit(closed).get("/metrics", headers={"accept": "text/plain"}).status_code == 401
    assert visit(closed).get("/healthz").text == "ok\n"


def test_who_signs_in_and_who_is_refused_is_in_the_audit_and_no_token_is(visitor: httpx.Client, filled: Any) -> None:
    visitor.post("/login", data={"token": "a-wrong-token"})
    visitor.post("/login", data={"token": filled.token})
    with reading(filled.engine) as session:
        lines = [line.decode() for line in audit_log.lines(session)][-2:]
    assert [json.loads(line)["action"] for line in lines] == ["login-refused", "login"]
    assert json.loads(lines[1])["actor"] == "operator/operator"
    assert not any("a-wrong-token" in line or filled.token in line for line in lines)
