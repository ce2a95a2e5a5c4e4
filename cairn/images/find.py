"""What images lie under a folder. Looks at names, and into a file only where the name does not tell."""

import os
from collections.abc import Iterator
from pathlib import Path

from tifffile import TiffFile

from cairn.errors import ImageError
from cairn.images.reading import explained
from cairn.images.source import ImageSource

# The longest ending that fits wins.
ENDINGS = {
    ".ome.tif": "tiff",
    ".ome.tiff": "tiff",
    ".ome.btf": "tiff",
    ".ome.tf8": "tiff",
    "component_data.tif": "tiff",
    "component_data.tiff": "tiff",
    ".qptiff": "tiff",
    ".svs": "tiff",
    ".btf": "tiff",
    ".tf8": "tiff",
    ".tif": "plain-tiff",
    ".tiff": "plain-tiff",
    ".ndpi": "slide",
    ".mrxs": "slide",
    ".scn": "slide",
    ".bif": "slide",
    ".fw": "raw",
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".png": "raster",
    ".jpg": "raster",
    ".jpeg": "raster",
    ".dcm": "dicom",
    ".dicom": "dicom",
}
ZARR_MARKS = (".zgroup", ".zattrs", ".zarray", "zarr.json")


def find_images(folder: Path) -> list[ImageSource]:
    """List the images under a folder, sorted by id.

    One image is: a file of a known format; a folder's single-channel TIFFs together; the DICOM files of one series in a
    folder, named by the first of them; an OME-Zarr directory. Hidden and temporary files are passed over, and files of
    other formats.
    Raises ImageError when there is no such folder.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder.name}: is no folder; expected the folder of images")
    return sorted(_walk(folder, folder, frozenset()), key=lambda source: source.id)


def find_image(path: Path) -> ImageSource:
    """Return the image that one path stands for; its id is its name.

    That is a file by itself, an OME-Zarr directory, or a folder of single-channel TIFFs. Of the DICOM files of one
    slide, one stands for all beside it. Raises ImageError for anything else.
    """
    if path.is_dir() and any((path / mark).is_file() for mark in ZARR_MARKS):
        return ImageSource(path.name, (path,), "zarr")
    together = [source for source in find_images(path) if source.id == path.name] if path.is_dir() else []
    if together:
        return together[0]
    kind = format_of(path) if path.is_file() else None
    if kind is None:
        raise ImageError(
            f"{path.name}: is no image; expected a file of a format that Cairn reads, an OME-Zarr directory or a "
            "folder of single-channel TIFFs"
        )
    if kind == "dicom":
        return _dicom_image(path)
    beside_it = path.with_suffix("")  # where Mirax keeps a slide's pixels
    paths = (path, beside_it) if path.suffix.lower() == ".mrxs" and beside_it.is_dir() else (path,)
    return ImageSource(path.name, paths, "tiff" if kind == "plain-tiff" else kind)


def _dicom_image(path: Path) -> ImageSource:
    # Half a second that only those with DICOM need spend.
    from cairn.images.formats.dicom_find import dicom_series  # noqa: PLC0415

    alone = next(dicom_series([path]), None)
    if alone is None:
        raise ImageError(f"{path.name}: found DICOM without pixels; expected an image")
    if alone[0] == "dicom-slide":
        beside = sorted(other for other in path.parent.iterdir() if other.is_file() and format_of(other) == "dicom")
        alone = next(one for one in dicom_series(beside) if path in one[1])
    return ImageSource(path.name, alone[1], alone[0])


def _walk(folder: Path, root: Path, above: frozenset[Path]) -> Iterator[ImageSource]:
    real = folder.resolve()
    if real in above:
        return  # a link to a folder that it lies in
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not is_passing(entry.name))
    except OSError:
        # Named as an image that cannot be opened, so that a person sees it and the rest goes on.
        yield ImageSource(relative(folder, root), (folder,), "unreadable")
        return
    if any((folder / mark).is_file() for mark in ZARR_MARKS):
        yield ImageSource(relative(folder, root), (folder,), "zarr")
        return
    plain: list[Path] = []
    dicom: list[Path] = []
    for name in names:
        path = folder / name
        if path.is_dir():
            yield from _walk(path, root, above | {real})
            continue
        kind = format_of(path)
        if kind == "plain-tiff":
            plain.append(path)
        elif kind == "dicom":
            dicom.append(path)
        elif kind:
            beside = path.with_suffix("")  # where Mirax keeps a slide's pixels
            both = (path, beside) if path.suffix.lower() == ".mrxs" and beside.is_dir() else (path,)
            yield ImageSource(relative(path, root), both, kind)
    yield from channel_folder(plain, root)
    if dicom:
        # Half a second that only those with DICOM need spend.
        from cairn.images.formats.dicom_find import dicom_series  # noqa: PLC0415

        for kind, files in dicom_series(dicom):
            yield ImageSource(relative(files[0], root), files, kind)


def is_passing(name: str) -> bool:
    """Tell whether a name is of a hidden or temporary file."""
    return name.startswith((".", "~", "#")) or name.endswith(("~", ".tmp", ".part", ".partial", ".crdownload"))


def format_of(path: Path) -> str | None:
    """Return the format that a name's ending says; a name without one is DICOM if the file says so."""
    name = path.name.lower()
    fitting = [ending for ending in ENDINGS if name.endswith(ending)]
    if fitting:
        return ENDINGS[max(fitting, key=len)]
    # Scanners name files without an ending, or by a UID, whose last part looks like one.
    if (path.suffix == "" or path.suffix[1:].isdigit()) and name != "dicomdir":
        try:
            with path.open("rb") as file:
                return "dicom" if file.read(132)[128:] == b"DICM" else None
        except OSError:
            return None
    return None


def channel_folder(paths: list[Path], root: Path) -> Iterator[ImageSource]:
    """Take two or more single-channel TIFFs of a folder as one image, others each as its own.

    A file that cannot be understood counts to the folder's image when the others make one, so that the image fails and
    not the file alone.
    """
    kinds = {path: single_channel(path) for path in paths}
    together = [path for path in paths if kinds[path] is not False]
    if sum(kind is True for kind in kinds.values()) < 2:
        together = []
    if together:
        yield ImageSource(relative(together[0].parent, root), tuple(together), "tiff-folder")
    for path in paths:
        if path not in together:
            yield ImageSource(relative(path, root), (path,), "tiff")


def single_channel(path: Path) -> bool | None:
    """Tell whether a TIFF has one page of one sample; None when it cannot be understood."""
    try:
        with explained(path.name), TiffFile(path) as tiff:
            return len(tiff.pages) == 1 and tiff.pages[0].samplesperpixel == 1
    except ImageError:
        return None


def relative(path: Path, root: Path) -> str:
    """Write a path as an id; the root itself is its name."""
    return path.relative_to(root).as_posix() if path != root else root.name
