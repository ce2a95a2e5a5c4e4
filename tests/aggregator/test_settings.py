"""Addresses, and the one file that says how an aggregator runs."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.settings import join_address, load_settings, split_address
from cairn.errors import ConfigError

WHOLE = 'federation = "tissue"\naddresses = ["cairn.example.org"]\n'


@given(st.sampled_from(["localhost", "cairn.example.org", "10.0.0.7", "::1", "2001:db8::17"]), st.integers(0, 65535))
def test_an_address_reads_back_as_it_was_written(host: str, port: int) -> None:
    assert split_address(join_address(host, port)) == (host, port)


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":80",
        "host:",
        "host:port",
        "host:65536",
        "http://host",
        "a b",
        "-host",
        "host.-x",
        "::1",
        "[host",
        "h\n:1",
        "a/b",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"is not|neither"):
        split_address(address)


def test_only_what_a_person_must_decide_has_no_default(tmp_path: Path) -> None:
    path = tmp_path / "aggregator.toml"
    path.write_text(WHOLE)
    settings = load_settings(path)
    assert settings.database_url == f"sqlite:///{tmp_path / 'cairn.db'}"
    assert settings.blobs_url == f"file://{tmp_path / 'blobs'}"
    assert settings.training is None
    for missing in ("federation", "addresses"):
        path.write_text("\n".join(line for line in WHOLE.splitlines() if not line.startswith(missing)))
        with pytest.raises(ConfigError, match=f"{missing} is missing"):
            load_settings(path)


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "aggregator.toml"
    path.write_text(WHOLE + "[limits]\nthreads = 9\n")
    monkeypatch.setenv("CAIRN_DATABASE", "postgresql+psycopg://db/cairn")
    monkeypatch.setenv("CAIRN_LIMITS__THREADS", "77")
    settings = load_settings(path)
    assert (settings.database_url, settings.limits.threads) == ("postgresql+psycopg://db/cairn", 77)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('listen = "0.0.0.0"', "names no port"),
        ('listen = "0.0.0.0:8445"', "three different ports"),
        ('[training]\nsuperlink_listen = "0.0.0.0:8443"', "four different ports"),
        ('[training]\nsuperlink_listen = "0.0.0.0"', "names no port"),
        ('[training]\nsuperlink_address = "http://x"', "is not HOST:PORT"),
        ('[training]\nsuperlink = "0.0.0.0:1"', "did you mean training.superlink_listen"),
        ('enrolment_address = "http://x"', "is not HOST:PORT"),
        ("[limits]\nthreads = 1", "greater than or equal to 8"),
        ("[limits]\nthread = 100", "did you mean limits.threads"),
        ('pki = "x"', "did you mean pki_dir"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_says_what_is_expected(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "aggregator.toml").write_text(WHOLE + line)
    with pytest.raises(ConfigError, match=sentence) as raised:
        load_settings(tmp_path / "aggregator.toml")
    assert "\n" not in str(raised.value)
