"""What `cairn edge check` says of training; nothing is started and nothing is changed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cairn import enrolment
from cairn.flower import missing_packages
from edge_node.settings import PATHS, SiteSettings, Table, Training
from edge_node.training.link import link_fault
from edge_node.training.surroundings import not_installed

KINDS: Final = {"scenes": "scenes", "labelled": "labelled images", "volumes": "volumes"}  # as people call them


@dataclass
class TrainingReport:
    """How training stands. `faults` keep the site from training, `remarks` do not."""

    sentence: str = "no; there is no [training] in site.toml"
    remarks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def check_training(settings: SiteSettings, superlink: str | None) -> TrainingReport:
    """Look at packages, scenes, the SuperNode's key and the way to the SuperLink.

    superlink  host:port, empty when the federation does not train, None when the aggregator could not be asked
    """
    report = TrainingReport()
    training = settings.training
    if training is None:
        return report
    runs = ", ".join(training.runs) or "none"
    report.sentence = f"runs {runs}; {_sources(training)}; device {training.device}"
    if missing := missing_packages():
        report.faults.append(not_installed(missing))
    for kind, tables in training.tables.items():
        for number, table in enumerate(tables):
            _look(f"training.{kind}.{number}", table, report)
    if not enrolment.supernode_known(settings.identity_folder):
        report.remarks.append("the aggregator gets the key of this site's SuperNode when the service starts")
    if superlink:
        if fault := link_fault(superlink, enrolment.tls_files(settings.identity_folder).ca):
            report.faults.append(fault)
    elif superlink is not None:
        report.remarks.append("the aggregator does not train: it has not said where its SuperLink is")
    return report


def _sources(training: Training) -> str:
    """Count them: "1 source of scenes, 2 sources of labelled images"."""
    counts = {what: len(training.tables[kind]) for kind, what in KINDS.items()}
    return ", ".join(f"{n} source{'s' if n > 1 else ''} of {what}" for what, n in counts.items() if n)


def _look(place: str, table: Table, report: TrainingReport) -> None:
    """See whether everything that a table names is there."""
    for key in sorted(PATHS & table.keys()):
        if not isinstance(table[key], str) or Path(table[key]).exists():
            continue
        if table.get("kind") == "needles" and key == "folder":
            continue  # the trainer makes it
        sentence = f"{place}.{key}: there is nothing at {table[key]}"
        if table.get("kind") == "labels":
            report.remarks.append(f"{sentence} yet; label images are written in a study's last stage")
        else:
            report.faults.append(sentence)
