"""Settings of a site."""

from pathlib import Path

import pytest

from cairn.errors import ConfigError
from edge_node.settings import load_settings

MINIMAL = """
state_dir = "state"
[images]
folder = "images"
[approval]
studies = ["tumour-*"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_relative_paths_are_relative_to_the_settings_file(tmp_path):
    settings = load_settings(write(tmp_path, MINIMAL))
    assert settings.state_dir == tmp_path / "state"
    assert settings.images.folder == tmp_path / "images"
    assert settings.labels_folder == tmp_path / "state" / "labels"
    named = load_settings(write(tmp_path, MINIMAL + '[labels]\nfolder = "out"\n'))
    assert named.labels_folder == tmp_path / "out"


def test_the_whole_file_is_understood(tmp_path):
    settings = load_settings(
        write(
            tmp_path,
            """
state_dir = "/var/lib/cairn"
backend = "numba"
threads = 3
rescan_seconds = 5
[images]
folder = "/data"
[images.bands]
CD3 = "Opal 520"
DAPI = 0
[images.raw]
height = 10
width = 12
bands = 3
bands_last = false
[labels]
format = "ome-zarr"
[approval]
fingerprints = ["00000000000000000000000000000000000000000000000000000000000000FF"]
[local]
listen = "localhost:50100"
page = "[::1]:8080"
""",
        )
    )
    assert settings.images.bands == {"CD3": "Opal 520", "DAPI": 0}
    assert settings.images.raw is not None
    assert settings.images.raw.layout().bands_last is False
    assert settings.approval.fingerprints == ("0" * 62 + "ff",)


@pytest.mark.parametrize("line", ['state_dir = "state"', 'folder = "images"', 'studies = ["tumour-*"]'])
def test_what_a_person_must_decide_has_no_default(tmp_path, line):
    with pytest.raises(ConfigError, match=r"missing|only you can decide"):
        load_settings(write(tmp_path, MINIMAL.replace(line, "")))


@pytest.mark.parametrize("address", ["0.0.0.0:0", "10.0.0.5:80", "hospital.example:80", "127.0.0.1", "127.0.0.1:99999"])
def test_only_this_machine_itself_may_look(tmp_path, address):
    with pytest.raises(ConfigError, match=r"write 127\.0\.0\.1:PORT"):
        load_settings(write(tmp_path, MINIMAL + f'[local]\npage = "{address}"\n'))


@pytest.mark.parametrize("port", ["0", "8080", "59999", "60000", "65535"])
def test_in_a_container_the_page_takes_every_port(tmp_path, port):
    settings = load_settings(write(tmp_path, MINIMAL + f'[local]\nin_container = true\npage = "0.0.0.0:{port}"\n'))
    assert settings.local.page == f"0.0.0.0:{port}"


@pytest.mark.parametrize("port", ["65536", "99999"])
def test_a_port_that_there_is_not_is_refused_in_a_container_too(tmp_path, port):
    with pytest.raises(ConfigError, match=r"local\.page"):
        load_settings(write(tmp_path, MINIMAL + f'[local]\nin_container = true\npage = "0.0.0.0:{port}"\n'))


def test_an_unknown_setting_names_the_nearest_known_one(tmp_path):
    with pytest.raises(ConfigError, match=r"images\.folder"):
        load_settings(write(tmp_path, MINIMAL.replace("folder", "foldr")))


def test_a_short_fingerprint_approves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        load_settings(write(tmp_path, MINIMAL + 'fingerprints = ["abc"]\n'))


TRAINING = MINIMAL + '[training]\nruns = ["sella-*"]\n'


def test_without_a_section_for_it_a_site_does_not_train(tmp_path):
    assert load_settings(write(tmp_path, MINIMAL)).training is None


def test_scenes_are_passed_on_as_they_are_with_their_paths_in_full(tmp_path):
    scenes = """
[[training.scenes]]
kind = "landmarks"
images = "xrays"
landmarks = "/data/points.csv"
tasks = { sella = "1" }
[[training.scenes]]
kind = "labels"
study = "tumour"
sequence = "folder"
[[training.scenes]]
kind = "generated"
images = 12
"""
    training = load_settings(write(tmp_path, TRAINING + scenes)).training
    assert training is not None
    assert training.scenes == (
        {
            "kind": "landmarks",
            "images": str(tmp_path / "xrays"),
            "landmarks": "/data/points.csv",
            "tasks": {"sella": "1"},
        },
        {"kind": "labels", "sequence": "folder", "folder": str(tmp_path / "state" / "labels" / "tumour")},
        {"kind": "generated", "images": 12},
    )


def test_labelled_images_stand_beside_scenes_or_alone_with_their_paths_in_full(tmp_path):
    labelled = """
[[training.labelled]]
kind = "files"
labels = "cells.csv"
images = "~/smears"
columns = { label = "type" }
[[training.labelled]]
kind = "needles"
images = 100
backgrounds = "real"
"""
    alone = load_settings(write(tmp_path, TRAINING + labelled)).training
    assert alone is not None
    assert alone.scenes == ()
    assert alone.labelled == (
        {
            "kind": "files",
            "labels": str(tmp_path / "cells.csv"),
            "images": str(Path.home() / "smears"),
            "columns": {"label": "type"},
        },
        {"kind": "needles", "images": 100, "backgrounds": str(tmp_path / "real")},
    )
    both = load_settings(write(tmp_path, TRAINING + labelled + '[[training.scenes]]\nkind = "generated"\n')).training
    assert both is not None
    assert both.tables == {"scenes": ({"kind": "generated"},), "labelled": alone.labelled, "volumes": ()}


def test_volumes_alone_are_something_to_learn_from_and_their_paths_are_in_full(tmp_path):
    volumes = """
[[training.volumes]]
kind = "files"
images = "scans"
labels = "/data/outlines"
modality = "ct"
classes = { spleen = 1 }
"""
    alone = load_settings(write(tmp_path, TRAINING + volumes)).training
    assert alone is not None
    (table,) = alone.tables["volumes"]
    assert (table["images"], table["labels"]) == (str(tmp_path / "scans"), "/data/outlines")
    assert table["classes"] == {"spleen": 1}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (MINIMAL + '[training]\nscenes = [{ kind = "generated" }]\n', r"training\.runs is missing"),
        (TRAINING, r"there is nothing to learn from; give a table \[\[training.scenes\]\] .* or \[\[training.vol"),
        (TRAINING + "scenes = []\nlabelled = []\n", r"there is nothing to learn from"),
        (TRAINING + 'scenes = [{ kind = "labels" }]\n', r"training\.scenes\.0\.study is missing"),
        (TRAINING + 'scenes = [{ kind = "generated" }]\ndevise = "cpu"\n', r"did you mean training\.device"),
        (TRAINING + 'scenes = [{ kind = "generated" }]\ndevice = "tpu"\n', r"training\.device"),
    ],
)
def test_a_wrong_section_for_training_is_one_sentence(text, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        load_settings(write(tmp_path, text))
