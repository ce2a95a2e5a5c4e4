"""Files that pages load, all from this package and from Plotly's wheel; read once, named by their content."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import plotly.offline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FOREVER = "public, max-age=31536000, immutable"
_TYPES = {"css": "text/css", "js": "text/javascript"}


@dataclass(frozen=True)
class Asset:
    """A file, its type and the start of its SHA-256, which its address carries so that it may be cached for ever."""

    body: bytes
    packed: bytes
    media_type: str
    version: str


@cache
def assets() -> dict[str, Asset]:
    """Read all files, by name. Plotly is 4.8 MB; packing it takes a quarter of a second, once."""
    folder = files("aggregator.dashboard") / "static"
    bodies = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.rpartition(".")[2] in _TYPES}
    bodies["plotly.min.js"] = plotly.offline.get_plotlyjs().encode()
    return {
        name: Asset(
            body,
            gzip.compress(body, 6, mtime=0),
            _TYPES[name.rpartition(".")[2]],
            hashlib.sha256(body).hexdigest()[:12],
        )
        for name, body in bodies.items()
    }


def address(name: str) -> str:
    """Return the path of an asset, its version in it."""
    return f"/static/{name}?v={assets()[name].version}"


def serve(request: Request) -> Response:
    """Answer with an asset."""
    asset = assets().get(request.path_params["name"])
    if asset is None:
        raise HTTPException(404)
    packed = "gzip" in request.headers.get("accept-encoding", "")
    headers = {"cache-control": FOREVER if request.query_params.get("v") == asset.version else "no-cache"}
    if packed:
        headers |= {"content-encoding": "gzip", "vary": "accept-encoding"}
    return Response(asset.packed if packed else asset.body, media_type=asset.media_type, headers=headers)
