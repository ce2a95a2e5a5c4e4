"""Where an aggregator listens, and where others find it: the same ports again after a restart, as far as can be."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from aggregator.runs.superlink import choose_port
from aggregator.settings import AggregatorSettings, join_address, split_address
from cairn.errors import ConfigError
from cairn.files import write_atomically

FILE = "ports.json"  # the last run's ports, taken again where the settings say 0


@dataclass(frozen=True)
class Addresses:
    """Where a running aggregator is, each host:port.

    address, enrolment, dashboard  for sites and operators, for newcomers, and the pages
    superlink                      for the sites' SuperNodes; "" when the federation does not train
    """

    address: str
    enrolment: str
    dashboard: str
    superlink: str = ""


@dataclass(frozen=True)
class Ports:
    """The ports of this machine that are taken, or for SuperLink chosen."""

    listen: int
    enrolment: int
    dashboard: int
    superlink: int | None = None

    def addresses(self, settings: AggregatorSettings) -> Addresses:
        """Say how others reach them."""
        host, public_port = split_address(settings.addresses[0])
        web_host = split_address(settings.dashboard_listen)[0]
        return Addresses(
            address=join_address(host, public_port or self.listen),
            enrolment=settings.enrolment_address or join_address(host, self.enrolment),
            dashboard=join_address(host if web_host in {"0.0.0.0", "::"} else web_host, self.dashboard),  # noqa: S104
            superlink=self._superlink_address(settings, host),
        )

    def _superlink_address(self, settings: AggregatorSettings, first_host: str) -> str:
        if settings.training is None:
            return ""
        if self.superlink is None:  # in another process; the settings saw to it that its address is known
            return settings.training.superlink_address or ""
        host, port = split_address(settings.training.superlink_address or first_host)
        return join_address(host, (port if settings.training.superlink_address else None) or self.superlink)


def bind_all(
    settings: AggregatorSettings,
    listen: Callable[[str], int],
    enrolment: Callable[[str], int],
    dashboard: Callable[[str], int],
) -> Ports:
    """Bind the ports of the settings, each by its own function of host:port. Raises ConfigError."""
    path = settings.state_dir / FILE
    before = _last(path)
    bound = (
        _bind(settings.listen, before.get("listen"), listen),
        _bind(settings.enrolment_listen, before.get("enrolment"), enrolment),
        _bind(settings.dashboard_listen, before.get("dashboard"), dashboard),
    )
    superlink = None
    if settings.training and settings.training.here:
        host, port = split_address(settings.training.superlink_listen)
        superlink = port or choose_port(host, before.get("superlink"))
    ports = Ports(*bound, superlink)
    with write_atomically(path) as file:
        file.write(json.dumps(asdict(ports)).encode())
    return ports


def _last(path: Path) -> dict[str, int | None]:
    try:
        ports: dict[str, int | None] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return ports


def _bind(listen: str, before: int | None, bind: Callable[[str], int]) -> int:
    """Bind a port; where the settings say 0, first try the last run's, so that members find the aggregator again."""
    host, port = split_address(listen)
    wanted = [port] if port else [*([before] if before else []), 0]
    for one in wanted:
        try:
            return bind(join_address(host, one or 0))
        except (RuntimeError, ConfigError) as error:
            if one == wanted[-1]:
                raise ConfigError(
                    f"cannot listen on {join_address(host, one or 0)}; is it taken by another program?"
                ) from error
    raise AssertionError("there is always a last one")
