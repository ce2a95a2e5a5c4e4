"""Deal a person's folder of images to the demo's sites, as hospitals would hold them: whole folders, none shared."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cairn.errors import ImageError
from cairn.images import ImageSource, find_images, open_image


@dataclass(frozen=True)
class Hand:
    """What one site gets: images of `data`, by their ids."""

    site: str
    sources: tuple[ImageSource, ...]

    @property
    def raw_bytes(self) -> int:
        """Bytes of the image files."""
        return sum(source.raw_bytes for source in self.sources)


def deal(sources: Sequence[ImageSource], sites: int) -> list[Hand]:
    """Deal images to sites by their top folder, the largest first and always to the site that has least.

    With fewer folders than sites the images are dealt one by one. Raises ImageError with fewer images than sites.
    """
    if len(sources) < sites:
        raise ImageError(f"{len(sources)} images were found for {sites} sites; give more images or ask for fewer sites")
    folders: dict[str, list[ImageSource]] = defaultdict(list)
    for source in sources:
        folders[source.id.split("/")[0]].append(source)
    groups = list(folders.values()) if len(folders) >= sites else [[source] for source in sources]
    groups.sort(key=lambda group: (-sum(source.raw_bytes for source in group), group[0].id))
    hands: list[list[ImageSource]] = [[] for _ in range(sites)]
    for group in groups:
        min(hands, key=lambda hand: (sum(source.raw_bytes for source in hand), len(hand))).extend(group)
    return [Hand(f"site-{i + 1}", tuple(hand)) for i, hand in enumerate(hands)]


def lay_out(hand: Hand, folder: Path) -> None:
    """Make a site's folder of images, of links to the dealt files; nothing is copied."""
    for source in hand.sources:
        place = folder / source.id
        links = {place: source.paths[0]} if len(source.paths) == 1 else {place / p.name: p for p in source.paths}
        for link, path in links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())


def common_bands(data: Path) -> tuple[str, ...]:
    """Name the bands that every image of a folder has, in the order of the first.

    Raises ImageError when there is no image, or no band that all have.
    """
    sources = find_images(data)
    if not sources:
        raise ImageError(f"no image was found under {data}; name a folder of images with --data")
    shared: list[str] | None = None
    for source in sources:
        try:
            with open_image(source) as image:
                has = image.bands
        except ImageError:
            continue  # the site will say so; the others decide
        shared = list(has) if shared is None else [band for band in shared if band in has]
    if not shared:
        raise ImageError(f"the {len(sources)} images under {data} have no band in common; give images of one kind")
    return tuple(shared)
