"""Which page and sample of a TIFF holds which band: OME, Akoya (QPTIFF, component_data), Aperio, ImageJ, plain."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tifffile import TiffFile, TiffPage

from cairn.errors import ImageError
from cairn.images.formats.ome import parse_ome, parse_xml

RGB = ("R", "G", "B", "A")


@dataclass(frozen=True)
class Place:
    """One band's place: a page, and a sample in it."""

    page: TiffPage
    sample: int


@dataclass(frozen=True)
class Layout:
    """An image over pages: its bands' names, and planes[z][band]."""

    bands: tuple[str, ...]
    planes: tuple[tuple[Place, ...], ...]
    pixel_size_um: float | None = None


def layout_of(tiff: TiffFile, name: str) -> Layout:
    """Find out which kind of TIFF this is by its first description, and lay out its bands. Raises ImageError."""
    pages = [page for page in tiff.pages if isinstance(page, TiffPage)]
    text = str(pages[0].description)
    if "<OME" in text[:2000]:
        return ome_layout(pages, text, name)
    if "PerkinElmer-QPI-ImageDescription" in text[:2000]:
        return akoya_layout(pages, name)
    if text.startswith("Aperio"):
        mpp = re.search(r"\bMPP\s*=\s*([0-9.]+)", text)
        return one_page(pages[0], float(mpp.group(1)) if mpp else None)
    if text.startswith("ImageJ="):
        return imagej_layout(tiff, pages, name)
    return plain_layout(pages)


def ome_layout(pages: Sequence[TiffPage], text: str, name: str) -> Layout:
    """Lay out an OME-TIFF; the smaller levels of a pyramid are sub-directories, so they are no pages."""
    ome = parse_ome(text, len(pages), name)
    names: list[str] = []
    for channel, samples in ome.channels:
        many = RGB[:samples] if samples in (3, 4) else [str(i) for i in range(samples)]
        if samples == 1:
            names.append(channel or str(len(names)))
        else:
            names.extend(f"{channel} {one}".strip() for one in many)
    planes = []
    for z in range(ome.size_z):
        row: list[Place] = []
        for c, (_, samples) in enumerate(ome.channels):
            page = pages[ome.pages[c, z]]
            if page.samplesperpixel != samples:
                raise ImageError(
                    f"{name}: found {page.samplesperpixel} samples a pixel; expected {samples} by its metadata"
                )
            row.extend(Place(page, s) for s in range(samples))
        planes.append(tuple(row))
    return Layout(tuple(names), tuple(planes), ome.pixel_size_um)


def akoya_layout(pages: Sequence[TiffPage], name: str) -> Layout:
    """Lay out a QPTIFF or component_data.tif: pages of type FullResolution, each with its name in its description."""
    full: list[TiffPage] = []
    names: list[str] = []
    dyes: list[str] = []
    size: float | None = None
    for page in pages:
        if "PerkinElmer-QPI-ImageDescription" not in str(page.description)[:2000]:
            continue  # a thumbnail or label without a description
        root = parse_xml(str(page.description), name)
        if root.findtext("ImageType", "FullResolution") != "FullResolution":
            continue
        if page.samplesperpixel > 1:  # a brightfield slide: one page in colour
            return one_page(page, resolution_um(page))
        dyes.append((root.findtext("Name") or str(len(full))).strip())
        names.append((root.findtext("Biomarker") or dyes[-1]).strip())
        full.append(page)
        size = size or resolution_um(page)
    if not full:
        raise ImageError(f"{name}: found no page of full resolution; expected one for each band")
    bands = names if len(set(names)) == len(names) else dyes
    return Layout(tuple(bands), (tuple(Place(page, 0) for page in full),), size)


def imagej_layout(tiff: TiffFile, pages: Sequence[TiffPage], name: str) -> Layout:
    """Lay out an ImageJ stack: channels fastest, then slices; names are its labels if there is one a channel."""
    about = tiff.imagej_metadata or {}
    channels, slices, frames = (int(about.get(key, 1)) for key in ("channels", "slices", "frames"))
    if channels * slices * frames == 1 and int(about.get("images", 1)) > 1:
        channels = int(about["images"])
    if frames > 1 and channels == slices == 1:
        raise ImageError(f"{name}: found {frames} time points; expected one")
    samples = pages[0].samplesperpixel
    if channels * slices != len(pages) or frames > 1:
        raise ImageError(
            f"{name}: its metadata speaks of {channels} channels, {slices} slices and {frames} time points, but it has "
            f"{len(pages)} pages; save it as OME-TIFF"
        )
    if samples > 1:
        return Layout(sample_names(pages[0]), tuple(tuple(Place(p, s) for s in range(samples)) for p in pages))
    labels = [str(label) for label in about.get("Labels", ())][:channels]
    names = labels if len(set(labels)) == channels else [str(i) for i in range(channels)]
    planes = tuple(tuple(Place(pages[z * channels + c], 0) for c in range(channels)) for z in range(slices))
    return Layout(tuple(names), planes)


def plain_layout(pages: Sequence[TiffPage]) -> Layout:
    """Lay out a TIFF that says nothing: a page in colour a slice, or a grey page a band; smaller copies left out."""
    full = [page for page in pages if not page.is_reduced and not page.is_mask] or list(pages[:1])
    if full[0].samplesperpixel > 1:
        samples = full[0].samplesperpixel
        return Layout(sample_names(full[0]), tuple(tuple(Place(p, s) for s in range(samples)) for p in full))
    names = [page_name(page) for page in full]
    if len(full) == 1 or "" in names or len(set(names)) < len(names):
        names = [str(i) for i in range(len(full))]
    return Layout(tuple(names), (tuple(Place(page, 0) for page in full),))


def page_name(page: TiffPage) -> str:
    """Return a page's own name: the PageName tag, or the target that MIBI writes into the description as JSON."""
    named = page.tags.get("PageName")
    if named is not None and str(named.value).strip():
        return str(named.value).strip()
    text = str(page.description)
    if text.startswith("{"):
        try:
            return str(json.loads(text).get("channel.target", ""))
        except ValueError:
            return ""
    return ""


def one_page(page: TiffPage, pixel_size_um: float | None) -> Layout:
    """Lay out a page with all bands in it."""
    return Layout(sample_names(page), (tuple(Place(page, s) for s in range(page.samplesperpixel)),), pixel_size_um)


def sample_names(page: TiffPage) -> tuple[str, ...]:
    """Name the samples of a page: R, G, B where they are colours, else numbers."""
    if page.photometric in (2, 6) and page.samplesperpixel in (3, 4):
        return RGB[: page.samplesperpixel]
    return tuple(str(i) for i in range(page.samplesperpixel))


def resolution_um(page: TiffPage) -> float | None:
    """Return the pixel size that the resolution tags give, None when they give none or not a square one."""
    unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.resolutionunit))
    x, y = page.resolution
    if unit is None or not (math.isfinite(x) and x > 0) or abs(x - y) > 0.01 * x:
        return None
    return unit / float(x)
