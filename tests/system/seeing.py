"""What people see of a federation: at a site its status and its page, at the aggregator the list and the dashboard."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from cairn.errors import CairnError
from deploy.processes import wait_for
from tests.invoking import invoke
from tests.system.observing import PATIENCE_S, Observed


def status(seen: Observed, site: str) -> dict[str, Any]:
    """Ask a site as its own people do; nothing while it does not answer, as when it starts."""
    config = seen.running.site_folder(site) / "site.toml"
    try:
        answer: dict[str, Any] = json.loads(invoke(["edge", "status", "--config", str(config), "--json"]))
    except CairnError:
        return {"connected": None, "problems": []}
    return answer


def page(seen: Observed, site: str) -> str:
    """Open a site's own page."""
    return httpx.get(status(seen, site)["page"]).text


def listed(seen: Observed, site: str) -> dict[str, Any]:
    """Look for a site in the operator's list."""
    sites = json.loads(invoke(["aggregator", "sites", "--profile", str(seen.running.profile), "--json"]))["sites"]
    found: dict[str, Any] = next(one for one in sites if one["name"] == site)
    return found


@contextmanager
def signed_in(seen: Observed) -> Iterator[httpx.Client]:
    """Sign in to the dashboard as the operator."""
    address, token = seen.running.dashboard()
    with httpx.Client(base_url=address, follow_redirects=True) as browser:
        browser.post("/login", data={"token": token})
        yield browser


def dashboard(seen: Observed, path: str) -> str:
    """Open a page of the dashboard as the operator."""
    with signed_in(seen) as browser:
        return browser.get(path).text


def refused(seen: Observed, kind: str) -> bool:
    """Tell whether the aggregator's metrics and log say that a call was refused for such a reason."""
    counted = f'cairn_errors_total{{kind="{kind}"}}' in dashboard(seen, "/metrics")
    return counted and f'"kind": "{kind}"' in (seen.running.folder / "logs" / "aggregator.log").read_text()


def eventually(seen: Observed, what: str, found: Callable[[], bool]) -> None:
    """Wait until something is so, as long as every program runs."""
    wait_for(what, found, seen.running.programs, PATIENCE_S)
