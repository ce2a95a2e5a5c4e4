"""The site's own gRPC service."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cairn.errors import ConfigError, Unreachable
from edge_node.local_service import EDGE, Edge, announce, ask, serve
from edge_node.status import Board, Problem, Work


@pytest.fixture
def board():
    return Board()


@pytest.fixture
def address(board, tmp_path):
    service, address = serve(Edge("st-elsewhere", board.snapshot, lambda: 2, "http://here/"), "127.0.0.1:0")
    announce(tmp_path, grpc=address, page="here")
    yield address
    service.stop(None)


def test_status_tells_how_it_stands(board, address, tmp_path):
    board.connection("connected")
    board.work(Work("tumour", "counts", 1, b"\1" * 32, 250, 1000, 3, 8))
    board.problems("x", [Problem("an image could not be read", "slide7.tif: truncated")])
    board.sent(77)
    now = ask(tmp_path)
    assert (now.site, now.connected, now.working_on) == ("st-elsewhere", True, "tumour/counts window 1")
    assert (now.pixels_done, now.pixels_total, now.files_done, now.files_total) == (250, 1000, 3, 8)
    assert (now.outbox, now.bytes_sent, list(now.problems)) == (2, 77, ["slide7.tif: truncated"])


def test_a_site_that_is_not_admitted_says_so_first(board, address, tmp_path):
    board.connection("refused", "revoked by the operator")
    assert ask(tmp_path).problems[0] == "revoked by the operator"
    assert not ask(tmp_path).connected


def test_a_site_that_has_lost_the_aggregator_says_why_until_it_is_back(board, address, tmp_path):
    board.connection("away", "the aggregator did not answer; trying again in 5 s")
    assert list(ask(tmp_path).problems) == ["the aggregator did not answer; trying again in 5 s"]
    board.connection("connected")
    assert list(ask(tmp_path).problems) == []


def test_health_and_reflection_answer(address):
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=EDGE))
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        [answer] = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        assert EDGE in {service.name for service in answer.list_services_response.service}


def test_without_a_running_service_the_question_says_how_to_start_one(tmp_path):
    with pytest.raises(Unreachable, match="cairn edge run"):
        ask(tmp_path)
    announce(tmp_path, grpc="127.0.0.1:1", page="")
    with pytest.raises(Unreachable, match="cairn edge run"):
        ask(tmp_path)


def test_a_port_in_use_is_one_clear_sentence(board, address):
    with pytest.raises(ConfigError, match=r"in use; set local\.listen"):
        serve(Edge("x", board.snapshot, lambda: 0, ""), address)
