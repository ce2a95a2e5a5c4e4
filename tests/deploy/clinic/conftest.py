"""A clinic's settings, as files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cairn.invitation import Invitation
from deploy.clinic.settings import Deployment, load_deployment

SITE = """\
state_dir = "/var/lib/cairn"
[images]
folder = "/data/slides"
[approval]
studies = ["tumour-*"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Lay a site's settings, an invitation and a folder of images."""
    (tmp_path / "site.toml").write_text(SITE, encoding="utf-8")
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.tif").write_bytes(b"II*")
    invited = Invitation(
        federation="tissue",
        name="north",
        role="site",
        address="127.0.0.1:1",
        enrolment_address="127.0.0.1:1",
        ca_pem="",
        token="t",
    )
    (tmp_path / "invitation.txt").write_text(invited.text(), encoding="utf-8")
    return tmp_path


@pytest.fixture
def deployment(folder: Path) -> Callable[..., Deployment]:
    """Return a function that reads a clinic's deployment.toml, with lines before its tables."""

    def make(*lines: str, data: str | None = None) -> Deployment:
        head = ('name = "north"', 'image = "cairn-edge:0.2.0"', 'site = "site.toml"', 'invitation = "invitation.txt"')
        path = folder / "deployment.toml"
        tables = f'[data]\nslides = "{data or folder / "slides"}"\n'
        path.write_text("\n".join((*head, *lines, tables)), encoding="utf-8")
        return load_deployment(path)

    return make
