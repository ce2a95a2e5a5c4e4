"""`cairn edge budget`: what this site's images have spent of their privacy."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from edge_node.settings import load_settings


def budget(
    config: Annotated[Path, typer.Option("--config", help="The site's settings, site.toml.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,  # noqa: FBT002 - typer's flag
) -> None:
    """Show which noisy tallies this site has given, what they cost together, and what is left.

    Example: `cairn edge budget --config site.toml`
    """
    from edge_node.privacy.ledger import SHOWN_DELTA, Ledger  # noqa: PLC0415 - each command loads what it needs

    settings = load_settings(config)
    ledger = Ledger(settings.state_dir, settings.privacy)
    lines, total = ledger.lines(), ledger.total()
    limit, delta = settings.privacy.epsilon, settings.privacy.delta or SHOWN_DELTA
    if as_json:
        found = {"epsilon": total, "delta": delta, "limit": limit, "spent": [asdict(line) for line in lines]}
        typer.echo(json.dumps(found))
        return
    table = Table("when", "study", "stage", "window", "for each", "ε of it alone", "at δ")
    for line in lines:
        table.add_row(
            line.at, line.study, line.stage, str(line.window), line.unit, f"{line.epsilon:.3g}", f"{line.delta:.2g}"
        )
    of = "without a limit" if limit is None else f"of {limit:.3g}"
    Console().print(table, f"ε {total:.3g} {of} is spent, at δ {delta:.2g}, over all studies")
