"""`cairn aggregator at-rest …`: make a key, change it, seal what lies in plain; on the aggregator's own machine."""

import json
import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from cairn.errors import ConfigError
from cairn.sealing import KEY, VARIABLE

app = typer.Typer(no_args_is_help=True, help="The keys that seal blobs and checkpoints on the disk.")
Dir = Annotated[Path, typer.Option("--dir", help="Folder of the aggregator, made by `init`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command("key")
def make_key(
    out: Annotated[Path, typer.Argument(help="File to write the new key into; keep it on another disk than the data.")],
) -> None:
    """Make a key-encryption key in a file that its owner alone may read; it is never shown.

    Where the file is there, the new key is put before those in it, for `at-rest rotate`.
    Example: `cairn aggregator at-rest key /etc/cairn/at-rest.key`
    """
    from cairn.files import write_atomically  # noqa: PLC0415 - other commands start faster without it

    try:
        former = out.read_text(encoding="utf-8") if out.exists() else ""
        with write_atomically(out, 0o600) as file:
            file.write(f"{secrets.token_hex(KEY)}\n{former}".encode())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{out} cannot be written: {error}") from error
    more = "; run `at-rest rotate`, then take the former key out" if former else "; set at_rest.key_file to it"
    typer.echo(f"A new key is in {out}{more}.")


@app.command()
def rotate(
    folder: Dir,
    *,
    new_data_key: Annotated[
        bool, typer.Option("--new-data-key", help="Also seal with a new data key; restart the aggregator then.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Wrap the data keys in the first key of `at_rest.key_file`; nothing else is written, and nothing is read.

    It may run while the aggregator serves; the former key is not needed afterwards.
    Example: `cairn aggregator at-rest rotate --dir /srv/cairn`
    """
    from aggregator import at_rest  # noqa: PLC0415 - other commands start faster without it
    from aggregator.settings import FILE, load_settings  # noqa: PLC0415
    from cairn import sealing  # noqa: PLC0415

    settings = load_settings(folder / FILE)
    keys = at_rest.encryption_keys(settings)
    if not keys:
        raise ConfigError(f"no key is set; set at_rest.key_file in aggregator.toml, or {VARIABLE}")
    number = sealing.rotate(at_rest.data_keys(settings), keys, new_data_key=new_data_key)
    words = (
        f"{number} data key{'s' if number != 1 else ''} wrapped anew; only the first key-encryption key opens them now."
    )
    typer.echo(json.dumps({"data_keys": number}) if as_json else words)


@app.command()
def seal(folder: Dir, as_json: AsJson = False) -> None:  # noqa: FBT002 - typer's flag
    """Seal blobs and checkpoints from before a key was set. Stop the aggregator first: runs must not write meanwhile.

    It may be killed at any time; what is left is sealed when it runs again.
    Example: `cairn aggregator at-rest seal --dir /srv/cairn`
    """
    from aggregator import at_rest  # noqa: PLC0415 - other commands start faster without it
    from aggregator.intake.store import BlobStore  # noqa: PLC0415
    from aggregator.runs.checkpoints import seal_checkpoints  # noqa: PLC0415
    from aggregator.settings import FILE, load_settings  # noqa: PLC0415

    settings = load_settings(folder / FILE)
    sealer = at_rest.open_sealer(settings)
    if sealer is None:
        raise ConfigError(f"no key is set; set at_rest.key_file in aggregator.toml, or {VARIABLE}")
    os.umask(0o077)
    blobs = BlobStore(settings.blobs_url, sealer=sealer).seal_old()
    checkpoints = seal_checkpoints(settings.runs, sealer)
    words = f"{blobs} blobs and {checkpoints} files of checkpoints are sealed now."
    typer.echo(json.dumps({"blobs": blobs, "checkpoint_files": checkpoints}) if as_json else words)
