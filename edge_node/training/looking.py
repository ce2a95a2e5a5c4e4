"""What `cairn edge check` says of training; nothing is started and nothing is changed."""

import http.client
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from cairn import enrolment
from edge_node.settings import SCENE_PATHS, SiteSettings
from edge_node.training.surroundings import missing_packages, not_installed

ANSWER_S = 10.0


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
        if fault := _health(superlink, enrolment.tls_files(settings.identity_folder).ca):
            report.faults.append(fault)
    elif superlink is not None:
        report.remarks.append("the aggregator does not train: it has not said where its SuperLink is")
    return report


def _health(superlink: str, ca: Path) -> str:
    """Say what keeps the site from the SuperLink; nothing when it answers."""
    host, _, port = superlink.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=str(ca))
        connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=ANSWER_S, context=context)
        try:
            connection.request("GET", "/health")
            status = connection.getresponse().status
        finally:
            connection.close()
    except ssl.SSLError:
        return f"the machine at {superlink} does not show a certificate of this federation; ask its operator"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"the SuperLink at {superlink} cannot be reached ({type(error).__name__}); check the firewall"
    return (
        ""
        if status == http.client.OK
        else f"the SuperLink at {superlink} answers {status} to /health; ask its operator"
    )
