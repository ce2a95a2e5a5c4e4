"""The one command, `cairn`: finds the commands of the programs that are installed, and prints errors as sentences."""

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Annotated

import typer

from cairn import __version__
from cairn.errors import CairnError, ConfigError

GROUP = "cairn.commands"


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """Assemble `cairn` from the entry points of the installed programs (an edge image has only `edge`).

    arguments  of the command line; only the program that they name is imported, all of them for the help text
    Raises ConfigError when it needs packages of an extra that is not installed.
    """
    app = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        help="Hospitals learn together from images that never leave them.\n\n"
        "Example: `cairn demo --data FOLDER --sites 3 --out RESULTS`",
    )

    @app.callback(invoke_without_command=True)
    def main_options(
        version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,  # noqa: FBT002
    ) -> None:
        if version:
            typer.echo(f"cairn {__version__}")
            raise typer.Exit

    points = {point.name: point for point in entry_points(group=GROUP)}
    named = next((argument for argument in arguments if argument in points), None)
    for name in [named] if named else sorted(points):
        try:
            program = points[name].load()
        except ModuleNotFoundError as error:
            if not named:  # the help text lists what can be run here
                continue
            raise ConfigError(
                f"cairn {name} needs the package {error.name}, which is not installed; install "
                f"cairn-federation[{'deploy' if name == 'deploy' else 'train'}]"
            ) from error
        app.add_typer(program, name=name)
    return app


def main() -> None:
    """Run the command line; an error of Cairn's is one sentence on standard error and exit code 1."""
    try:
        make_app(sys.argv[1:])()
    except CairnError as error:
        typer.echo(f"cairn: {error}", err=True)
        sys.exit(1)
