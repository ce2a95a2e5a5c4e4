"""The tree of errors: every leaf has a status, a sentence for a person, and its place in the drawing."""

import re

import grpc
import pytest

import cairn.errors
from cairn.errors import CairnError, error_classes

LOCAL = {"CairnError", "ConfigError", "DeviceError"}  # the root, and what never crosses the wire


def drawn() -> set[str]:
    """Return the class names in the drawing at the head of the module."""
    tree = (cairn.errors.__doc__ or "").split("CairnError\n")[1].split("\n\n")[0]
    return {"CairnError", *re.findall(r"\b(?:[A-Z][a-z]+){2,}\b|\b(?:Diverged|Revoked|Unreachable)\b", tree)}


def test_the_drawing_shows_exactly_the_classes_that_exist() -> None:
    assert drawn() == set(error_classes())


@pytest.mark.parametrize("name", sorted(error_classes()))
def test_every_error_has_a_grpc_status_and_says_what_it_means(name: str) -> None:
    cls = error_classes()[name]
    assert issubclass(cls, CairnError)
    assert grpc.StatusCode[cls.grpc_status] is not grpc.StatusCode.OK
    assert (cls.__doc__ or "").strip()


@pytest.mark.parametrize("name", sorted(set(error_classes()) - LOCAL))
def test_only_the_root_and_local_errors_look_like_a_bug_of_the_server(name: str) -> None:
    assert error_classes()[name].grpc_status != "INTERNAL"


@pytest.mark.parametrize("name", sorted(error_classes()))
def test_an_error_is_its_sentence(name: str) -> None:
    assert str(error_classes()[name]("what was found, what was expected")) == "what was found, what was expected"
