"""What `cairn edge check` says of training; nothing is started and nothing is changed."""

from dataclasses import dataclass, field
from pathlib import Path

from cairn import enrolment
from cairn.flower import missing_packages
from edge_node.settings import SCENE_PATHS, SiteSettings
from edge_node.training.link import link_fault
from edge_node.training.surroundings import not_installed


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
    sources = "1 source" if len(training.scenes) == 1 else f"{len(training.scenes)} sources"
    report.sentence = f"runs {runs}; {sources} of scenes; device {training.device}"
    if missing := missing_packages():
        report.faults.append(not_installed(missing))
    for number, scene in enumerate(training.scenes):
        for key in sorted(SCENE_PATHS & scene.keys()):
            if isinstance(scene[key], str) and not Path(scene[key]).exists():
                sentence = f"training.scenes.{number}.{key}: there is nothing at {scene[key]}"
                if scene.get("kind") == "labels":
                    report.remarks.append(f"{sentence} yet; label images are written in a study's last stage")
                else:
                    report.faults.append(sentence)
    if not enrolment.supernode_known(settings.identity_folder):
        report.remarks.append("the aggregator gets the key of this site's SuperNode when the service starts")
    if superlink:
        if fault := link_fault(superlink, enrolment.tls_files(settings.identity_folder).ca):
            report.faults.append(fault)
    elif superlink is not None:
        report.remarks.append("the aggregator does not train: it has not said where its SuperLink is")
    return report
