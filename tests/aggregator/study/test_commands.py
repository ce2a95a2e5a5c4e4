"""`cairn study …` as a researcher types it, against a real aggregator and sites that upload over mutual TLS."""

import csv
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from aggregator import database, tables
from aggregator.study.studies import State
from cairn import codec
from cairn.cli import main
from cairn.rpc import TlsFiles, mtls_channel
from cairn.study import StudySpec
from cairn.tally import Tally
from cairn.v1 import tallies_pb2, tallies_pb2_grpc
from tests.aggregator.conftest import Running
from tests.aggregator.simulated import BANDS, Levels, count, tissue, wait_until

SMALL = """
bands = ["dapi", "keratin", "cd45", "cd8", "sma"]
min_sites = 2
stage_deadline = "2h"
dimensions = 5
depth = 7
width = 4096
top_k = 40
clusters = 3
n_neighbors = 5

[states]
tumour = ["keratin"]
"""


@pytest.fixture
def study(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], running: Running
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `cairn study ARGUMENTS…` in this process; gives exit code, output and errors."""
    monkeypatch.setenv("CAIRN_PROFILE", str(running.profile))

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["cairn", "study", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def sites(running: Running, tmp_path: Path) -> Iterator[None]:
    """Run two sites that count every open plan, until the test ends."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=serve, args=(running, running.join(name), tissue(seed), tmp_path / name, stop))
        for seed, name in enumerate(("north", "south"))
    ]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join(30)


def serve(running: Running, files: TlsFiles, levels: Levels, path: Path, stop: threading.Event) -> None:
    done: set[str] = set()
    with mtls_channel(running.aggregator.addresses.address, files) as channel:
        stub = tallies_pb2_grpc.TalliesStub(channel)
        while not stop.wait(0.02):
            with database.reading(running.aggregator.engine) as session:
                plans = session.scalars(select(tables.Plan).filter_by(state="open")).all()
            for plan in plans:
                if plan.fingerprint in done:
                    continue
                fingerprint = bytes.fromhex(plan.fingerprint)
                stage = codec.decode_plan(plan.published).stage
                digest = codec.write_tally(path, Tally(fingerprint, count(stage, levels)))
                data = path.read_bytes()
                parts = [data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)]
                stub.Upload(
                    iter(
                        [
                            tallies_pb2.UploadRequest(
                                fingerprint=fingerprint if not number else b"",
                                offset=number << 20,
                                data=part,
                                digest=digest if number == len(parts) - 1 else b"",
                            )
                            for number, part in enumerate(parts)
                        ]
                    ),
                    timeout=30,
                )
                done.add(plan.fingerprint)


def reach(study: Callable[..., tuple[int, str, str]], state: str) -> dict[str, object]:
    shown: dict[str, object] = {}

    def there() -> bool:
        nonlocal shown
        shown = json.loads(study("show", "breast", "--json")[1])
        return shown["state"] == state

    wait_until(there, f"the state {state}", 120)
    return shown


@pytest.mark.usefixtures("sites")
def test_a_researcher_creates_follows_approves_exports_and_extends_a_study(
    study: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text(SMALL)
    code, out, err = study("create", "breast", "--file", tmp_path / "study.toml", "--top-k", 30)
    assert (code, err) == (0, "")
    assert "cairn study show breast --wait" in out
    code, _, err = study("show", "breast", "--wait", "--json")
    assert code == 0
    shown = reach(study, "awaiting_approval")
    assert shown["spec"]["top_k"] == 30  # type: ignore[index]  # JSON
    assert [(stage["stage"], stage["state"]) for stage in shown["stages"]] == [  # type: ignore[attr-defined]
        ("moments", "done"),
        ("ranges", "done"),
        ("counts", "done"),
        ("recovery", "done"),
    ]
    assert study("approve", "breast", "--state", "9=x")[2].startswith("cairn: there is no cluster 9")
    assert study("approve", "breast", "--state", "0=tumour", "--state", "1=stroma")[0] == 0
    reach(study, "done")
    assert study("export", "breast", tmp_path / "map.parquet")[0] == 0
    assert study("export", "breast", tmp_path / "map.csv", "--json")[0] == 0
    table = pq.read_table(tmp_path / "map.parquet").to_pydict()
    with (tmp_path / "map.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["key"]) for row in rows] == table["key"]
    assert len(rows) == 30
    assert {row["state"] for row in rows if row["cluster"] == "0"} == {"tumour"}
    assert json.loads(study("extend", "breast", "--json")[1]) == {"name": "breast", "window": 1}
    assert reach(study, "awaiting_approval")["window"] == 1
    code, out, _ = study("show", "breast")
    assert "heavy hitters hold" in " ".join(out.split())


def test_a_study_may_be_given_by_options_alone(study: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = study(
        "create", "breast", "--bands", ", ".join(BANDS), "--min-sites", 3, "--state", "immune=cd45,cd8",
        "--deadline", "7d", "--auto-approve", "--json",
    )  # fmt: skip
    assert code == 0
    made = json.loads(out)
    assert made["bands"] == list(BANDS)
    assert made["states"] == {"immune": ["cd45", "cd8"]}
    assert made["stage_deadline"] == "P7D"
    assert made["auto_approve"] is True
    listed = json.loads(study("list", "--json")[1])["studies"]
    assert [(one["name"], one["state"]) for one in listed] == [("breast", "moments")]
    assert "breast" in study("list")[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("create", "breast", "--min-sites", 2), "bands: Field required"),
        (("create", "breast", "--bands", "a,b"), "min_sites: Field required"),
        (("create", "Breast!", "--bands", "a", "--min-sites", 2), "name: String should match pattern"),
        (("create", "b", "--bands", "a,a", "--min-sites", 2), "every band needs a name of its own"),
        (("create", "b", "--bands", "a", "--min-sites", 2, "--state", "t=x"), "states name the bands ['x']"),
        (("create", "b", "--file", "/nowhere/x.toml"), "/nowhere/x.toml cannot be read: No such file"),
        (("show", "nothing"), "there is no study 'nothing'; `cairn study list` shows all"),
        (("approve", "nothing"), "there is no study 'nothing'"),
        (("export", "nothing", "x.csv"), "there is no study 'nothing'"),
    ],
)
def test_a_mistake_is_one_sentence(
    study: Callable[..., tuple[int, str, str]], arguments: tuple[object, ...], sentence: str
) -> None:
    code, out, err = study(*arguments)
    assert (code, out) == (1, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_name_is_given_to_one_study_only(study: Callable[..., tuple[int, str, str]]) -> None:
    create = ("create", "breast", "--bands", "a,b", "--min-sites", 1)
    assert study(*create)[0] == 0
    assert study(*create)[2] == "cairn: there is a study breast already; choose another name\n"


def test_what_does_not_fit_a_study_s_state_is_refused(study: Callable[..., tuple[int, str, str]]) -> None:
    study("create", "breast", "--bands", "a,b", "--min-sites", 1)
    for command in (("approve", "breast"), ("extend", "breast"), ("export", "breast", "x.csv")):
        code, _, err = study(*command)
        assert code == 1
        assert "in the state" in err


@pytest.mark.parametrize("command", ["create", "list", "show", "approve", "extend", "export"])
def test_every_command_has_an_example(study: Callable[..., tuple[int, str, str]], command: str) -> None:
    code, out, _ = study(command, "--help")
    assert code == 0
    assert f"cairn study {command}" in out.split("Usage:")[1].split("\n", 1)[1]


def test_every_setting_of_a_study_and_every_state_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "DATA_MODEL.md").read_text(encoding="utf-8")
    missing = [name for name in (*StudySpec.model_fields, *get_args(State)) if f"`{name}`" not in page]
    assert not missing, f"docs/DATA_MODEL.md lacks {missing}"
