"""`cairn edge check`: everything a person would want to know before starting the service, and nothing is changed."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cairn import __version__, codec, enrolment
from cairn.errors import CairnError, ImageError, PlanError
from cairn.images import find_images, open_image
from cairn.plan import fingerprint
from cairn.rpc import errors_from_wire, mtls_channel
from cairn.v1 import plans_pb2, plans_pb2_grpc
from edge_node.approval import reason_against
from edge_node.connection import in_words, read_enrolled
from edge_node.settings import SiteSettings
from edge_node.training.looking import check_training

OPENED = 500  # images that are opened; a folder may hold a hundred thousand
ROOM = 500_000_000  # bytes free that a site should have for tallies and label images
SOON = timedelta(days=14)
ANSWER_S = 10.0


@dataclass
class SiteReport:
    """What was found. `faults` keep the site from working, `remarks` do not."""

    settings: dict[str, Any]
    images: dict[str, int] = field(default_factory=dict)
    raw_bytes: int = 0
    bands: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    site: str = ""
    aggregator: str = ""
    certificate_expires: str = ""
    training: str = ""
    free_bytes: int = 0
    would: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Give it for `--json`."""
        return asdict(self)

    def show(self, console: Console) -> None:
        """Print it for a person."""
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for key, value in self.settings.items():
            table.add_row(key, str(value))
        found = ", ".join(f"{number} {kind}" for kind, number in self.images.items()) or "none"
        table.add_row("images", f"{found}; {self.raw_bytes:,} bytes")
        table.add_row("bands", ", ".join(self.bands) or "none read")
        table.add_row("site", self.site or "not enrolled")
        table.add_row("aggregator", self.aggregator)
        table.add_row("certificate", f"until {self.certificate_expires}" if self.certificate_expires else "none")
        table.add_row("training", self.training)
        table.add_row("free disk", f"{self.free_bytes:,} bytes")
        console.print(table, markup=False)  # what stands in brackets is a name
        for title, sentences in (("would", self.would), ("note", self.remarks), ("fault", self.faults)):
            for sentence in sentences:
                console.print(f"[bold]{title}[/]: {escape(sentence)}", highlight=False)


def check_site(settings: SiteSettings, now: datetime) -> SiteReport:
    """Look at a site's settings, images, disk, certificate and aggregator."""
    report = SiteReport(settings=_resolved(settings))
    _check_images(settings, report)
    _check_disk(settings, report)
    superlink = _check_aggregator(settings, report, now)
    training = check_training(settings, superlink)
    report.training = training.sentence
    report.remarks += training.remarks
    report.faults += training.faults
    return report


def _resolved(settings: SiteSettings) -> dict[str, Any]:
    allowed = settings.approval
    return {
        "state_dir": str(settings.state_dir),
        "images.folder": str(settings.images.folder),
        "images.bands": dict(settings.images.bands),
        "images.raw": settings.images.raw.model_dump() if settings.images.raw else None,
        "labels.folder": str(settings.labels_folder),
        "labels.format": settings.labels.format,
        "approval.studies": list(allowed.studies or ()),
        "approval.fingerprints": list(allowed.fingerprints or ()),
        "policy": ", ".join(f"{key} {value}" for key, value in settings.policy.said().items() if value is not None),
        "training": settings.training.model_dump(mode="json") if settings.training else None,
        "local.listen": settings.local.listen,
        "local.page": settings.local.page,
        "backend": settings.backend,
        "threads": settings.threads,
        "scale": settings.scale.model_dump(exclude_none=True) if settings.scale else None,
        "rescan_seconds": settings.rescan_seconds,
    }


def _check_images(settings: SiteSettings, report: SiteReport) -> None:
    wanted = settings.images
    try:
        sources = find_images(wanted.folder)
    except ImageError as error:
        report.faults.append(f"images.folder: {error}")
        return
    report.images = dict(Counter(source.format for source in sources))
    if not sources:
        report.faults.append(f"no image was found under {wanted.folder}; set images.folder to where they are")
    lists: Counter[tuple[str, ...]] = Counter()
    for source in sources[:OPENED]:
        try:
            report.raw_bytes += source.raw_bytes
            with open_image(source, wanted.bands, wanted.raw.layout() if wanted.raw else None) as image:
                lists[image.bands] += 1
                for name in wanted.bands:
                    image.indices([name])
        except ImageError as error:
            report.unreadable.append(str(error))
    report.bands = list(lists.most_common(1)[0][0]) if lists else []
    if len(lists) > 1:
        report.remarks.append(f"the images do not all have the same bands: {len(lists)} different lists were found")
    if len(sources) > OPENED:
        report.remarks.append(f"the first {OPENED} of {len(sources)} images were opened")
    shown = report.unreadable[:10]
    report.remarks += [f"will be left out: {sentence}" for sentence in shown]
    if len(report.unreadable) > len(shown):
        report.remarks.append(f"and {len(report.unreadable) - len(shown)} more that will be left out")
    if sources and len(report.unreadable) >= min(len(sources), OPENED):
        report.faults.append("not one image can be used; see the notes")


def _check_disk(settings: SiteSettings, report: SiteReport) -> None:
    there = settings.state_dir
    while not there.exists():
        there = there.parent
    report.free_bytes = shutil.disk_usage(there).free
    if report.free_bytes < ROOM:
        report.faults.append(f"{report.free_bytes:,} bytes are free for state_dir; {ROOM:,} are needed, free some")


def _check_aggregator(settings: SiteSettings, report: SiteReport, now: datetime) -> str | None:
    """Return where the SuperLink is; None when the aggregator could not be asked."""
    try:
        who = read_enrolled(settings.identity_folder)
    except CairnError as error:
        report.aggregator = "unknown"
        report.faults.append(str(error))
        return None
    report.site, report.aggregator = who.site, who.address
    report.certificate_expires = who.expires.isoformat()
    if who.expires <= now:
        report.faults.append(f"the certificate ended on {who.expires:%Y-%m-%d}; ask for an invitation and enrol again")
        return None
    if who.expires - now < SOON:
        report.remarks.append(f"the certificate ends on {who.expires:%Y-%m-%d}; the running service renews it")
    try:
        first = first_answer(settings, who.address)
    except CairnError as error:
        report.faults.append(in_words(error, who.address))
        return None
    report.would = _would(settings, [offer.plan for offer in first.offers])
    return first.superlink_address


def first_answer(settings: SiteSettings, address: str) -> plans_pb2.WatchResponse:
    """Ask the aggregator what is open now. Raises CairnError."""
    with mtls_channel(address, enrolment.tls_files(settings.identity_folder)) as channel, errors_from_wire():
        stream = plans_pb2_grpc.PlansStub(channel).Watch(plans_pb2.WatchRequest(version=__version__), timeout=ANSWER_S)
        first = next(iter(stream))
        stream.cancel()  # type: ignore[no-untyped-call]
        return first


def _would(settings: SiteSettings, plans: Sequence[bytes]) -> list[str]:
    sentences = []
    for published in plans:
        of = fingerprint(published)
        try:
            plan = codec.decode_plan(published)
        except PlanError as error:
            sentences.append(f"refuse plan {of.hex()}: {error}")
            continue
        reason = reason_against(plan, of, settings)
        what = f"{plan.study}, {plan.stage.stage} (plan {of.hex()})"
        sentences.append(f"refuse {what}: {reason}" if reason else f"take part in {what}")
    return sentences or ["wait: no plan is open"]
