"""Pictures for people: an agent's way on an image as an animation, and curves. Arrays in, one file out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageColor, ImageDraw, ImageFont

from agent_trainer.environment import ACTIONS
from agent_trainer.evaluation import Trace
from agent_trainer.scenes.scene import Scene
from cairn.files import write_atomically
from cairn.palette import cluster_colour

PATH: Final = "#f0e442"
BOX: Final = "#e69f00"
LANDMARK: Final = "#56b4e9"
GROUND: Final = "#15161a"
INK: Final = "#e8e9ec"
FAINT: Final = "#8a8f98"
PANEL: Final = 190  # px, width of the column with the values
MOST_FRAMES: Final = 120  # of an animation; longer ways leave out steps
FRAME_MS: Final = 90
LAST_MS: Final = 2000
GREYS: Final = 120  # of an animation's colours
DPI: Final = 150

Point = tuple[float, float]


@dataclass(frozen=True)
class _View:
    """One plane of the image on the canvas: which axes go down and across, where it begins, px a pixel."""

    down: int
    across: int
    left: int
    top: int
    zoom: float

    def at(self, place: npt.NDArray[np.floating] | npt.NDArray[np.int64]) -> Point:
        """Return a place's point on the canvas, (x, y); a pixel's centre is half a pixel in."""
        return (
            self.left + (float(place[self.across]) + 0.5) * self.zoom,
            self.top + (float(place[self.down]) + 0.5) * self.zoom,
        )


def animate(path: Path, scene: Scene, trace: Trace, box: int, side: int = 420) -> None:
    """Write a GIF of a search: the agent's box and way, the landmark where it is known, and Q of each action.

    box   pixels a side of a crop
    side  of the picture's image, px
    Raises OSError.
    """
    palette = _palette()
    frames = [
        frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in draw_frames(scene, trace, box, side)
    ]
    data = BytesIO()
    frames[0].save(
        data,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[FRAME_MS] * (len(frames) - 1) + [LAST_MS],
        loop=0,
        disposal=1,
    )
    with write_atomically(path) as file:
        file.write(data.getvalue())


def _palette() -> Image.Image:
    """Return the colours of an animation: greys, and ours as they are."""
    greys = [round(255 * i / (GREYS - 1)) for i in range(GREYS)]
    ours = [part for colour in (PATH, BOX, LANDMARK, GROUND, INK, FAINT) for part in ImageColor.getrgb(colour)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for grey in greys for part in (grey,) * 3] + ours)
    return palette


def draw_frames(scene: Scene, trace: Trace, box: int, side: int = 420) -> Iterator[Image.Image]:
    """Draw the animation's pictures: steps in order, and at last the end."""
    steps = len(trace.positions_px)
    for step in range(0, steps, -(-steps // MOST_FRAMES)):
        yield draw_frame(scene, trace, step, box, side)
    yield draw_frame(scene, trace, steps, box, side)


def draw_frame(scene: Scene, trace: Trace, step: int, box: int, side: int = 420) -> Image.Image:
    """Draw one moment; `step` = number of steps shows the end. Of a volume the three planes through the agent."""
    over = step >= len(trace.positions_px)
    place = trace.end_px if over else trace.positions_px[step]
    last = min(step, len(trace.positions_px) - 1)
    views = _views(scene, side)
    width = max(int(view.left + scene.size[view.across] * view.zoom) for view in views)
    height = max(int(view.top + scene.size[view.down] * view.zoom) for view in views)
    canvas = Image.new("RGB", (width + PANEL, max(height, 200 + 26 * trace.q.shape[1])), GROUND)
    draw = ImageDraw.Draw(canvas)
    way = np.concatenate([trace.positions_px[: last + 1], place[None]]) if over else trace.positions_px[: last + 1]
    for view in views:
        canvas.paste(_plane(scene, view, place), (view.left, view.top))
        _draw_way(draw, view, way, scene)
        if over:
            x, y = view.at(place)
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline=PATH, width=2)
        else:
            half = box * int(trace.scales[last]) * view.zoom / 2
            x, y = view.at(place)
            draw.rectangle((x - half, y - half, x + half, y + half), outline=BOX, width=2)
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=BOX)
    # What lies beyond the image, and the box there, gives way to the values.
    draw.rectangle((width, 0, width + PANEL, canvas.height), fill=GROUND)
    _draw_values(draw, width + 14, scene, trace, last, place, over=over)
    return canvas


def _views(scene: Scene, side: int) -> list[_View]:
    if scene.axes == 2:
        return [_View(0, 1, 0, 0, side / max(scene.size))]
    zoom = side / (max(scene.size) * 1.5)
    _, height, width = (int(n * zoom) for n in scene.size)
    gap = 4
    return [
        _View(1, 2, 0, 0, zoom),
        _View(0, 2, 0, height + gap, zoom),
        _View(1, 0, width + gap, 0, zoom),
    ]


def _plane(scene: Scene, view: _View, place: npt.NDArray[np.int64]) -> Image.Image:
    """Cut the view's plane through a place out of the first channel, as large as it is on the canvas."""
    index: list[slice | int] = [int(at) for at in place]
    index[view.down] = index[view.across] = slice(None)
    pixels = scene.image[0][tuple(index)]
    if view.down > view.across:
        pixels = pixels.T
    size = max(1, int(scene.size[view.across] * view.zoom)), max(1, int(scene.size[view.down] * view.zoom))
    resample = Image.Resampling.NEAREST if scene.image.shape[0] > 1 else Image.Resampling.BICUBIC
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, resample).convert("RGB")


def _draw_way(draw: ImageDraw.ImageDraw, view: _View, way: npt.NDArray[np.int64], scene: Scene) -> None:
    points = [view.at(place) for place in way]
    if len(points) > 1:
        draw.line(points, fill=PATH, width=2)
    x, y = points[0]
    draw.rectangle((x - 3, y - 3, x + 3, y + 3), outline=PATH, width=2)
    if scene.landmark_px is not None:
        x, y = view.at(scene.landmark_px)
        draw.line((x - 8, y, x + 8, y), fill=LANDMARK, width=2)
        draw.line((x, y - 8, x, y + 8), fill=LANDMARK, width=2)


def _draw_values(
    draw: ImageDraw.ImageDraw,
    left: int,
    scene: Scene,
    trace: Trace,
    step: int,
    place: npt.NDArray[np.int64],
    *,
    over: bool,
) -> None:
    """Write task, step and distance, and draw Q of each action as a bar; the chosen action is bright."""
    large, small = ImageFont.load_default(16), ImageFont.load_default(13)
    draw.text((left, 12), scene.task, fill=INK, font=large)
    lines = [f"{'end after' if over else 'step'} {step + 1}", f"{int(trace.scales[step])} px a step"]
    if scene.landmark_px is not None:
        away = np.linalg.norm((place - scene.landmark_px) * scene.spacing_mm)
        lines.append(f"{away:.3g} mm away")
    for number, line in enumerate(lines):
        draw.text((left, 42 + 20 * number), line, fill=INK, font=small)
    top, wide = 128, PANEL - 70
    draw.text((left, top - 4), "Q", fill=FAINT, font=small)
    low, high = min(float(trace.q.min()), 0.0), max(float(trace.q.max()), 0.0)
    scale = wide / max(high - low, 1e-9)
    zero = left + 30 - low * scale
    chosen = int(trace.q[step].argmax())
    for action, value in enumerate(trace.q[step].tolist()):
        y = top + 24 + 26 * action
        draw.text((left, y), ACTIONS[action], fill=INK if action == chosen else FAINT, font=small)
        first, last = sorted((zero, zero + value * scale))
        draw.rectangle((first, y + 2, max(last, first + 1), y + 14), fill=BOX if action == chosen else FAINT)
    draw.line((zero, top + 22, zero, top + 22 + 26 * trace.q.shape[1]), fill=INK)


@dataclass(frozen=True)
class Curves:
    """One set of axes.

    title  what is drawn, with its unit
    lines  name -> (x, y) of equal length
    log    whether y is logarithmic
    """

    title: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log: bool = False


def draw_curves(path: Path, panels: Sequence[Curves], x: str = "round") -> None:
    """Write a PNG of curves side by side, a line of the same name in the same colour on all. Raises OSError."""
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows + 0.5), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    for axes, panel in zip(grid, panels, strict=False):
        for name, (at, values) in panel.lines.items():
            number = names.index(name)
            mark = "o" if len(at) < 2 else None
            axes.plot(at, values, color=cluster_colour(number), label=name, linewidth=1.8, marker=mark, markersize=4)
        axes.set_title(panel.title, size=11, loc="left")
        axes.set_xlabel(x, size=10)
        if panel.log:
            axes.set_yscale("log")
        axes.grid(color="#e4e6ea", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if len(names) > 1:
        handles = {label: line for axes in grid for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(len(names), 6), frameon=False)
    with write_atomically(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def draw_search(path: Path, scene: Scene, trace: Trace) -> None:
    """Write a PNG of a search's course: distance to the landmark where it is known, and the best action's Q."""
    steps = list(range(1, len(trace.positions_px) + 1))
    panels = [Curves("largest Q, mm", {"Q": (steps, trace.q.max(axis=1).tolist())})]
    if scene.landmark_px is not None:
        away = np.linalg.norm((trace.positions_px - scene.landmark_px) * scene.spacing_mm, axis=1)
        panels.insert(0, Curves("distance to the landmark, mm", {"distance": (steps, away.tolist())}))
    draw_curves(path, panels, "step")
