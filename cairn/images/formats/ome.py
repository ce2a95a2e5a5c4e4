"""OME-XML: the bands' names, the pixel size, and which page holds which plane."""

from dataclasses import dataclass
from itertools import islice, product
from xml.etree import ElementTree as ET

from cairn.errors import ImageError

MICROMETRES = {"m": 1e6, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "": 1.0}


@dataclass(frozen=True)
class OmePixels:
    """The first image of an OME-XML text.

    channels       (name or "", samples per pixel) of each
    size_z         slices
    pages          (channel, z) -> page number
    pixel_size_um  None when not given or not square
    """

    channels: tuple[tuple[str, int], ...]
    size_z: int
    pages: dict[tuple[int, int], int]
    pixel_size_um: float | None


def parse_xml(text: str, name: str) -> ET.Element:
    """Parse metadata that came with an image, namespaces taken off the tags. Raises ImageError."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ImageError(f"{name}: its metadata defines entities; expected plain OME-XML")
    try:
        root = ET.fromstring(text)  # noqa: S314  no entities, see above
    except ET.ParseError as error:
        raise ImageError(f"{name}: corrupt metadata, its XML cannot be parsed; export it again") from error
    for element in root.iter():
        element.tag = element.tag.rsplit("}", 1)[-1]
    return root


def parse_ome(text: str, page_count: int, name: str) -> OmePixels:
    """Read the first image of an OME-XML text (www.openmicroscopy.org/Schemas/OME/2016-06). Raises ImageError."""
    root = parse_xml(text, name)
    pixels = root.find("Image/Pixels")
    if pixels is None:
        raise ImageError(f"{name}: found OME-XML without an image; expected one")
    if len({uuid.get("FileName") for uuid in pixels.iter("UUID")}) > 1:
        raise ImageError(f"{name}: its planes lie in several files; expected an OME-TIFF that is complete in one file")
    try:
        size_c, size_z, size_t = (int(pixels.get(f"Size{axis}", "1")) for axis in "CZT")
        channels = tuple((c.get("Name", ""), int(c.get("SamplesPerPixel", "1"))) for c in pixels.findall("Channel"))
        order = pixels.get("DimensionOrder", "XYZCT")
        channels = channels or (("", 1),) * size_c
        if size_t != 1 or min(size_c, size_z) < 1 or sorted(order) != sorted("XYZCT"):
            raise ImageError(
                f"{name}: found {size_t} time points, {size_z} slices and {size_c} channels; expected one time point"
            )
        if sum(samples for _, samples in channels) != size_c:
            raise ImageError(f"{name}: names {len(channels)} channels of {size_c}; export it again")
        pages = plane_pages(pixels, order, (len(channels), size_z), page_count)
    except ValueError as error:
        raise ImageError(f"{name}: corrupt metadata, a size in its OME-XML is not a number; export it again") from error
    missing = len(channels) * size_z - len(pages)
    if missing or any(page >= page_count for page in pages.values()):
        raise ImageError(
            f"{name}: its metadata speaks of {len(channels)} channels and {size_z} slices, but it has {page_count} "
            "pages; export it again"
        )
    return OmePixels(channels, size_z, pages, pixel_size_of(pixels))


def plane_pages(pixels: ET.Element, order: str, sizes: tuple[int, int], page_count: int) -> dict[tuple[int, int], int]:
    """Follow the TiffData elements: which page holds which (channel, z). A later element wins."""
    fastest = [axis for axis in order if axis in "CZ"]
    size = dict(zip("CZ", sizes, strict=True))
    # product varies its last argument fastest
    planes = [
        dict(zip(reversed(fastest), index, strict=True))
        for index in product(*(range(size[a]) for a in reversed(fastest)))
    ]
    pages: dict[tuple[int, int], int] = {}
    for data in pixels.findall("TiffData") or [ET.Element("TiffData")]:
        ifd = int(data.get("IFD", "0"))
        count = int(data.get("PlaneCount", "1" if data.get("IFD") is not None else str(page_count)))
        first = {"C": int(data.get("FirstC", "0")), "Z": int(data.get("FirstZ", "0"))}
        start = planes.index(first)
        for i, plane in enumerate(islice(planes, start, start + count)):
            pages[plane["C"], plane["Z"]] = ifd + i
    return pages


def pixel_size_of(pixels: ET.Element) -> float | None:
    """Return the side of a pixel in µm, None when it is not given or not square within 1 %."""
    try:
        x, y = (
            float(pixels.get(f"PhysicalSize{axis}", "nan")) * MICROMETRES[pixels.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "XY"
        )
    except (ValueError, KeyError):
        return None
    return x if x > 0 and abs(x - y) <= 0.01 * x else None
