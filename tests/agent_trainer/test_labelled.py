"""A site's labelled images: found, divided by patient, and what is wrong with them told in sentences."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from agent_trainer.labelled.settings import LabelledFiles, LabelledFolders, Needles
from agent_trainer.labelled.sources import Example, Labelled, load_labelled, read_labelled
from agent_trainer.labelled.splitting import divide
from cairn.errors import ConfigError, ImageError

AB = ("a", "b")


def picture(path: Path, value: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full((4, 4), value, np.uint8)).save(path)


def files(site: Path, rows: Mapping[str, str] | str, **changed: Any) -> LabelledFiles:
    """Make a source of a label file; the images of its rows are made if they are not there."""
    if not isinstance(rows, str):
        for name in rows:
            picture(site / "images" / name)
        rows = "image,label\n" + "\n".join(f"{name},{label}" for name, label in rows.items())
    (site / "labels.csv").write_text(rows)
    (site / "images").mkdir(exist_ok=True)
    return LabelledFiles(**({"labels": site / "labels.csv", "images": site / "images"} | changed))


def load(*sources: Any, share: float = 0.5, **options: Any) -> Labelled:
    return load_labelled(sources, AB, share, **options)


def names(examples: tuple[Example, ...]) -> set[str]:
    return {example.name for example in examples}


def patients(examples: tuple[Example, ...]) -> set[str]:
    return {example.patient for example in examples}


def few(found: Labelled) -> tuple[str, ...]:
    """Return the sentence on images to validate on, which are fewer than ten in most of these tests."""
    many = len(found.validation)
    said = f"{many} image is" if many == 1 else f"{many} images are"
    return (
        (f"{said} set aside to validate on, fewer than 10; this site tells nobody how good the classifier is on them",)
        if 0 < many < 10
        else ()
    )


TWENTY = {f"{n:02d}_{side}.png": "a" if n % 4 else "b" for n in range(20) for side in ("left", "right")}


def test_a_split_is_by_patient_always_the_same_and_does_not_depend_on_others(tmp_path: Path) -> None:
    first = load(files(tmp_path, TWENTY, patient="^([0-9]+)_"))
    again = load(files(tmp_path, TWENTY, patient="^([0-9]+)_"))
    assert first == again
    assert patients(first.train).isdisjoint(patients(first.validation))
    assert len(patients(first.train)) + len(patients(first.validation)) == 20
    assert len(first.train) + len(first.validation) == 40
    assert first.problems == few(first)
    fewer = load(files(tmp_path, {n: w for n, w in TWENTY.items() if n < "15"}, patient="^([0-9]+)_"))
    assert names(fewer.train) == {name for name in names(first.train) if name < "15"}


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.99]),
)
def test_each_class_of_two_patients_or_more_is_on_both_sides(drawn: list[tuple[int, int]], share: float) -> None:
    of_patient = dict(drawn)  # one class a patient: then it always can be
    free = [Example(str(n), Path(str(n)), of_patient[patient], str(patient)) for n, (patient, _) in enumerate(drawn)]
    train, validation, problems = divide({"train": [], "validation": [], "free": free}, share)
    assert len(train) + len(validation) == len(free)
    assert {e.patient for e in train}.isdisjoint(e.patient for e in validation)
    if share == 0:
        assert not validation
        return
    number = Counter(of_patient.values())
    both = {label for label, count in number.items() if count > 1}
    assert both <= {e.label for e in train} & {e.label for e in validation}
    assert train
    assert bool(validation) == (len(of_patient) > 1) == (not problems)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.sampled_from(["train", "validation", "free"]))))
def test_no_patient_is_ever_on_both_sides_and_no_image_is_lost_without_a_word(drawn: list[Any]) -> None:
    sides: dict[str, list[Example]] = {"train": [], "validation": [], "free": []}
    for n, (patient, label, side) in enumerate(drawn):
        sides[side].append(Example(str(n), Path(str(n)), label, str(patient)))
    train, validation, problems = divide(sides, 0.3)
    assert {e.patient for e in train}.isdisjoint(e.patient for e in validation)
    kept = {e.name for e in train + validation}
    assert {e.name for e in sides["validation"]} <= {e.name for e in validation}
    assert len(kept) == len(train) + len(validation)
    assert len(kept) == len(drawn) or any("their images validate only" in p for p in problems)


def test_a_given_split_goes_first_and_other_rows_are_for_nothing(tmp_path: Path) -> None:
    rows = "image,label,split\n" + "\n".join(f"{n}.png,{'ab'[n % 2]},{s}" for n, s in enumerate(["train"] * 6))
    rows += "\n6.png,a,test\n7.png,b,test\n8.png,a,spare"
    for n in range(9):
        picture(tmp_path / "images" / f"{n}.png")
    found = load(files(tmp_path, rows, validation="test"))
    assert names(found.train) == {f"{n}.png" for n in range(6)}
    assert names(found.validation) == {"6.png", "7.png"}
    divided = load(files(tmp_path, rows))
    assert names(divided.train) | names(divided.validation) == {f"{n}.png" for n in range(6)}


def test_folders_are_classes_and_may_lie_in_folders_of_a_split(tmp_path: Path) -> None:
    for side in ("train", "val"):
        for n in range(3):
            picture(tmp_path / side / "healthy" / f"{side}{n}.png")
            picture(tmp_path / side / "ill" / f"{side}{n}.png")
    words = {"a": "healthy", "b": "ill"}
    given_ = load(LabelledFolders(images=tmp_path, classes=words, validation="val"))
    assert Counter(e.label for e in given_.train) == Counter(e.label for e in given_.validation) == {0: 3, 1: 3}
    assert all(name.startswith("val/") for name in names(given_.validation))
    own = load(LabelledFolders(images=tmp_path / "train", classes=words))
    assert len(own.train) + len(own.validation) == 6


def test_single_channel_tiffs_of_a_class_are_an_image_each(tmp_path: Path) -> None:
    for n in range(4):
        picture(tmp_path / "ab"[n % 2] / f"{n}.tif")
    found = load(LabelledFolders(images=tmp_path))
    assert names(found.train) | names(found.validation) == {"a/0.tif", "a/2.tif", "b/1.tif", "b/3.tif"}


def test_few_shots_take_so_many_of_each_class_to_learn_from_and_leave_validation_alone(tmp_path: Path) -> None:
    source = files(tmp_path, TWENTY)
    everything, few = load(source), load(source, shots=3)
    assert Counter(e.label for e in few.train) == {0: 3, 1: 3}
    assert few.validation == everything.validation
    assert names(few.train) < names(load(source, shots=4).train) < names(everything.train)


def test_groups_are_of_a_column_or_of_the_path(tmp_path: Path) -> None:
    for n in range(4):
        picture(tmp_path / "images" / ("hand" if n < 2 else "foot") / f"{n}.png")
    rows = "image,label,part\n0.png,a,hand\n1.png,b,hand\n2.png,a,foot\n3.png,b,"
    by_column = load(files(tmp_path, rows, columns={"group": "part"}), groups=["hand"])
    by_path = load(files(tmp_path, rows, group="^([a-z]+)/"), groups=["hand"])
    for found in (by_column, by_path):
        assert {e.name for e in found.train + found.validation} == {"hand/0.png", "hand/1.png"}
    assert any(
        "1 image says no group; left out, as the run takes only hand" in problem for problem in by_column.problems
    )
    assert by_path.problems == few(by_path)


def test_json_and_other_names_of_columns_and_words_are_read(tmp_path: Path) -> None:
    for n in range(4):
        picture(tmp_path / "images" / f"{n}.png")
    rows = [{"file": f"{n}", "finding": n % 2, "person": f"p{n}"} for n in range(4)]
    (tmp_path / "labels.json").write_text(json.dumps(rows))
    text = json.dumps(
        [
            {
                "kind": "files",
                "labels": "labels.json",
                "images": "images",
                "columns": {"image": "file", "label": "finding", "patient": "person"},
                "classes": {"a": "0", "b": "1"},
            }
        ]
    )
    found = load(*read_labelled(text, tmp_path))
    assert patients(found.train) | patients(found.validation) == {"p0", "p1", "p2", "p3"}
    assert all(e.label == int(e.patient[1]) % 2 for e in found.train + found.validation)


GOOD = {f"{n}.png": "ab"[n % 2] for n in range(6)}
LINES = "image,label\n" + "\n".join(f"{n},{w}" for n, w in GOOD.items())


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("0.png,c", "1 image is of 'c', which is none of the run's classes (a, b)"),
        ("gone.png,a", "of 7 rows 1 names no image in the folder images"),
        ("../../x,a", "of 7 rows 1 names no image in the folder images, or one of several of that name (../../x)"),
        ("/etc/passwd,a", "of 7 rows 1 names no image"),
        ("../labels.csv,a", "of 7 rows 1 names no image"),
        ("twice.png,a", "or one of several of that name (twice.png); expected a path within it"),
        ("0.png,a", "1 image is named more than once (0.png); taken once"),
        ("sub/twice.png,a\nsub/twice.png,b", "1 image is of two classes at once (twice.png); expected one"),
        ("sub/twice.png,a\n0.png,b", "1 image is of two classes at once (0.png); expected one"),
        (",a", "1 row has no image's name"),
        ("sub/twice.png,", "1 row has no label"),
        ("sub/twice.png", "1 row has no label"),
    ],
)
def test_a_wrong_row_costs_a_sentence_and_no_other_row(tmp_path: Path, rows: str, sentence: str) -> None:
    for name in [*GOOD, "twice.png", "sub/twice.png"]:
        picture(tmp_path / "images" / name)
    (tmp_path / "images" / "twice.png").rename(tmp_path / "images" / "twice.jpg")
    picture(tmp_path / "images" / "other" / "twice.png")
    found = load(files(tmp_path, f"{LINES}\n{rows}"))
    kept = names(found.train) | names(found.validation)
    assert kept - {"sub/twice.png"} == set(GOOD) - ({"0.png"} if "0.png,b" in rows else set())
    assert sentence in found.problems[0]
    assert found.problems[1:] == few(found)


def test_many_wrong_rows_make_few_sentences(tmp_path: Path) -> None:
    for name in [*GOOD, *(f"w{n}.png" for n in range(40))]:
        picture(tmp_path / "images" / name)
    rows = [*(f"w{n}.png,word{n}" for n in range(40)), *(f"absent{n}.png,a" for n in range(500))]
    found = load(files(tmp_path, f"{LINES}\n" + "\n".join(rows)))
    assert len(found.problems) == 8
    assert sum(len(problem) for problem in found.problems) < 1200
    assert "of 546 rows 500 name no image" in found.problems[0]
    assert "35 images are of 35 other words" in found.problems[-2]


def test_a_site_of_one_class_takes_part_and_is_told(tmp_path: Path) -> None:
    found = load(files(tmp_path, dict.fromkeys(GOOD, "b")))
    assert found.train
    assert found.validation
    assert found.problems == (
        "all images of this site are of the class b; it takes part, but its own figures say little",
        *few(found),
    )
    three = load_labelled([files(tmp_path, GOOD)], ("a", "b", "c"), 0.5)
    assert three.problems == ("this site has no image of the class c; it takes part with the others", *few(three))


def test_one_patient_learns_and_does_not_validate(tmp_path: Path) -> None:
    found = load(files(tmp_path, GOOD, patient="(p)ng"), share=0.99)
    assert len(found.train) == 6
    assert found.problems == ("all images of this site are of one patient; none is left to validate on",)


def test_a_misspelt_word_and_a_pattern_that_finds_nothing_are_told(tmp_path: Path) -> None:
    found = load(files(tmp_path, GOOD, classes={"a": "a", "b": "B"}, patient="^(x)"))
    assert {e.label for e in found.train + found.validation} == {0}
    assert "^(x) is not found in 6 of 6 names" in found.problems[0]
    assert "no image is called B; check classes" in found.problems[1]


@pytest.mark.parametrize(
    ("rows", "changed", "message"),
    [
        ("image,label\n", {}, "no image of the run's classes .a, b.; none could be made of its sources"),
        ("image,label\n0.png,x\n1.png,y", {}, "no image of the run's classes .a, b.; it has x, y"),
        ("image,label\n0.png,a", {"images": Path("nowhere")}, "nowhere: is no folder"),
        ("image,word\n0.png,a", {}, "has no column label, but image, word; expected image and label"),
        ("", {}, "has no column image, but none"),
        (LINES, {"validation": "test"}, "has no column split, which is to say what is for validation"),
        (LINES, {"columns": {"patient": "who"}}, "has no column who"),
        ('image,label\n"0.png,a', {}, "is not CSV"),
    ],
)
def test_a_source_without_sense_gives_one_clear_sentence(
    tmp_path: Path, rows: str, changed: dict[str, Any], message: str
) -> None:
    for name in GOOD:
        picture(tmp_path / "images" / name)
    with pytest.raises(ConfigError, match=message):
        load(files(tmp_path, rows, **changed))


def test_a_source_that_fails_leaves_the_others(tmp_path: Path) -> None:
    good = files(tmp_path, GOOD)
    found = load(LabelledFolders(images=tmp_path / "gone"), good)
    assert len(found.train) + len(found.validation) == 6
    assert found.problems == ("gone: is no folder; expected the folder of images", *few(found))


def test_empty_folders_and_images_beside_them_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this site has no image of the run's classes"):
        load(LabelledFolders(images=tmp_path))
    for n in range(3):
        picture(tmp_path / "a" / f"{n}.png")
    (tmp_path / "b").mkdir()
    picture(tmp_path / "stray.png")
    found = load(LabelledFolders(images=tmp_path))
    assert "1 image lies beside the folders of the classes (stray.png); expected each in one" in found.problems[0]
    assert "no image in b; expected some in the folder of each class" in found.problems[1]


def test_a_site_of_one_image_cannot_learn_but_can_be_measured(tmp_path: Path) -> None:
    one = files(tmp_path, {"0.png": "a"})
    with pytest.raises(ImageError, match=r"one image of the run.s classes .a, b.; expected at least two"):
        load(one)
    found = load(one, learning=False)
    assert len(found.train) + len(found.validation) == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "file"}, "labelled 0"),
        ({"kind": "folders"}, "labelled 0.folders.images: Field required"),
        ({"kind": "folders", "images": "x", "patient": "[0-9]+"}, "has no group; put what is looked for"),
        ({"kind": "folders", "images": "x", "patient": "([0-9]+"}, "is not a regular expression"),
        ({"kind": "folders", "images": "x", "classes": {"a": "w", "b": "w"}}, "two classes are called w"),
        ({"kind": "files", "images": "x", "labels": "y", "columns": {"colour": "z"}}, "labelled 0.files.columns"),
        ({"kind": "folders", "images": "x", "shots": 3}, "Extra inputs are not permitted"),
        ({"kind": "needles", "size": 64, "needle": 40}, "is no needle in 64"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(table: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace("[", r"\[").replace("+", r"\+")):
        read_labelled(json.dumps([table]), tmp_path)


def test_no_source_is_no_setting_and_paths_are_beside_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no source of labelled images is set"):
        read_labelled("[]", tmp_path)
    (needles,) = read_labelled('[{"kind": "needles", "backgrounds": "real"}]', tmp_path)
    assert isinstance(needles, Needles)
    assert needles.backgrounds == tmp_path / "real"


def test_made_needles_are_labelled_images_as_others_are(tmp_path: Path) -> None:
    words = {"a": "rows", "b": "checks"}
    needles = Needles(images=9, size=96, needle=12, folder=tmp_path / "made", classes=words)
    found = load(needles)
    assert Counter(e.label for e in found.train + found.validation) == {0: 3, 1: 3}
    assert found.problems == few(found)
    assert load(needles) == found


def test_x_rays_of_a_person_are_on_one_side(real_data: Path) -> None:
    source = LabelledFolders(
        images=real_data / "cxr_nih224",
        classes={"healthy": "No_findings", "pneumonia": "Pneumonia"},
        patient="^([0-9]+)_",
    )
    found = load_labelled([source], ("healthy", "pneumonia"), 0.2)
    assert len(found.train) + len(found.validation) == 650
    assert patients(found.train).isdisjoint(patients(found.validation))
    assert len(patients(found.train)) < len(found.train)  # persons with several images
    assert found.problems == ()
    for side in (found.train, found.validation):
        assert {e.label for e in side} == {0, 1}
    assert 0.1 < len(found.validation) / 650 < 0.3


def test_blood_cells_of_very_unequal_classes_are_on_both_sides(real_data: Path) -> None:
    cells = ("NEUTROPHIL", "EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "BASOPHIL")
    folder = real_data / "bccd"
    source = LabelledFiles(labels=folder / "wbc_type.csv", images=folder, columns={"label": "wbc_type"})
    found = load_labelled([source], cells, 0.2)
    assert len(found.train) + len(found.validation) == 235
    for side in (found.train, found.validation):
        assert {e.label for e in side} == set(range(5))  # there are two basophils
    assert any("1 row has no label" in problem for problem in found.problems)
    assert any("which is none of the run's classes" in problem for problem in found.problems)
