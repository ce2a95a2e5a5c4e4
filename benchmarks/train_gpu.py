"""Updates a second of the four learners: float32, mixed, compiled, by several processes; on a GPU at the papers' sizes.

    python -m benchmarks train_gpu

On a GPU a second is one of the clock, and what is compiled and what several processes learn come last, while there is
time: all of it takes about five minutes. Without one the sizes are small, nothing is mixed, and a second is one of the
processor's. A learner gets one batch again and again: what reads and changes images is left out, and on a CPU the Q of
a DQN's target network, which is remembered; but for `dqn/training`, which acts, keeps and learns, on a GPU with crops
cut there and on the CPU.
`apga/changed_images` is a whole loop too, its batches changed on the CPU while the GPU learns, or in between.
`processes` are one a GPU, or two that share what there is; their ratio is over one process, in seconds of the clock.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from agent_trainer import device_sight
from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_learner import Learner as ApgaLearner
from agent_trainer.apga_practice import ApgaPractice
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_learner import AttentionLearner
from agent_trainer.attention_views import View, map_shape
from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Batch, dealt
from agent_trainer.dqn import Learner as DqnLearner
from agent_trainer.dqn_practice import DqnPractice
from agent_trainer.labelled.sources import Example, Labelled
from agent_trainer.patches import in_memory
from agent_trainer.scenes.generated import generated_scenes
from agent_trainer.scenes.settings import Generated
from agent_trainer.scenes.sources import Scenes
from agent_trainer.segmentation.config import SegmentationConfig
from agent_trainer.segmentation.learner import Learner as SegmentationLearner
from agent_trainer.together import Deal, Together

Line = dict[str, Any]
Step = Callable[[], object]
Shared = Callable[[Deal], object]  # the same step, of several processes

CLASSES = ("one", "other")
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "mixed": {"precision": "mixed"},
    "compiled": {"compile": True},
    "mixed_compiled": {"precision": "mixed", "compile": True},
}
ON_GPU, ON_CPU = ("float32", "mixed", "mixed_compiled"), ("float32", "compiled")
SMALL: dict[str, dict[str, Any]] = {  # for a CPU; a GPU gets the papers' own numbers
    "dqn": {"box": 24, "channels": (8, 8), "kernels": (3, 3), "hidden": (64,)},
    "apga": {"side": 64, "batch": 8, "classifier": "small", "masker": "small"},
    "attention": {"patch": 32, "patches": 8, "batch": 4, "replicas": 2},
    "segmentation": {"network": "unet", "patch": (32, 32, 32), "width": 8, "depth": 3},
}
IMAGE = 1000  # pixels a side, of attention's
SECONDS, WARM = 2.0, 3  # of each measurement; updates before it
LATEST, LAST = 150.0, 270.0  # seconds after the start at which nothing more is compiled; nothing more is begun


def dqn(device: str, settings: dict[str, Any]) -> tuple[Any, Step, Shared]:
    """Make a DQN's learner and its step on one batch."""
    config, rng = DqnConfig(**settings), np.random.default_rng(0)
    made = DqnLearner(config, 1, config.actions, seed=0, device=device)
    b = config.batch
    states = rng.integers(0, 256, (2, b, *config.state_shape), np.uint8)
    ones, task, rewards = np.ones(b, np.float32), np.zeros(b, np.int64), rng.normal(size=b).astype(np.float32)
    batch = Batch(states[0], task, rng.integers(0, config.actions, b), rewards, ones, states[1], ones, np.arange(b))
    return made, partial(made.update, batch), lambda deal: made.learn_part(*deal(dealt(batch)))


def apga(device: str, settings: dict[str, Any]) -> tuple[Any, Step, Shared]:
    """Make APGA's learner, past pre-training, and its step on one batch."""
    config, rng = ApgaConfig(classes=CLASSES, pretrain_updates=0, **settings), np.random.default_rng(0)
    made = ApgaLearner(config, seed=0, device=device)
    pixels = rng.integers(0, 256, (config.batch, config.channels, config.side, config.side), np.uint8)
    step = partial(made.step, pixels, np.arange(config.batch) % 2, rng)
    return made, step, lambda deal: step(deal=deal)


def attention(device: str, settings: dict[str, Any]) -> tuple[Any, Step, Shared]:
    """Make attention sampling's learner and its step on images in memory."""
    config, rng = AttentionConfig(classes=CLASSES, **settings), np.random.default_rng(0)
    made, shape = AttentionLearner(config, seed=0, device=device), map_shape(config, IMAGE, IMAGE)
    images = [in_memory(rng.integers(0, 256, (config.channels, IMAGE, IMAGE), np.uint8)) for _ in range(config.batch)]
    views = [View(image, image.reduced(*shape)) for image in images]
    step = partial(made.update, views, np.arange(config.batch) % 2)
    return made, step, lambda deal: step(deal=deal)


def segmentation(device: str, settings: dict[str, Any]) -> tuple[Any, Step, Shared]:
    """Make segmentation's learner and its step on one batch of patches."""
    config = SegmentationConfig(classes=("organ",), modality="ct", **settings)
    made, generator = SegmentationLearner(config, seed=0, device=device), torch.Generator().manual_seed(0)
    images = torch.rand(config.batch, 1, *config.patch, generator=generator)
    labels = (images[:, 0] > 0.5).long()
    return (
        made,
        partial(made.step, images, labels),
        lambda deal: made.learn_part(*deal([images, labels.to(torch.uint8)])),
    )


MAKERS = {"dqn": dqn, "attention": attention, "segmentation": segmentation, "apga": apga}  # the dearest to compile last


def run(
    learners: Sequence[str] = tuple(MAKERS),
    ways: Sequence[str] | None = None,
    seconds: float = SECONDS,
    processes: int | None = None,
) -> Iterator[Line]:
    """Measure each learner in each way, `ratio` over its own float32; by several processes, None: one a GPU, or two."""
    gpu, began = torch.cuda.is_available(), time.monotonic()
    if not gpu:
        torch.set_num_threads(1)
    device, own = ("cuda", {}) if gpu else ("cpu", SMALL)
    plain: dict[str, float] = {}
    wanted = ways or (ON_GPU if gpu else ON_CPU)
    uncompiled, compiled = ([way for way in wanted if ("compiled" in way) is so] for so in (False, True))
    for way in uncompiled:
        for name in learners:
            yield from guarded(name, learning(name, way, device, own.get(name, {}), seconds, plain, wanted[0]))
    if "dqn" in learners:
        yield from guarded("dqn/training", training(device, own.get("dqn", {}), seconds, gpu=gpu))
    if "apga" in learners and seconds:
        yield from guarded("apga/changed_images", loading(device, own.get("apga", {}), seconds, gpu=gpu))
    for way in compiled:
        for name in learners:
            if not gpu or time.monotonic() - began < LATEST:
                yield from guarded(name, learning(name, way, device, own.get(name, {}), seconds, plain, wanted[0]))
    count = processes or max(2, torch.cuda.device_count())
    for name in learners if count > 1 else ():
        if not gpu or time.monotonic() - began < LAST:
            yield from guarded(f"{name}/processes", shared_out(name, device, own.get(name, {}), count, seconds))


def guarded(what: str, lines: Iterator[Line]) -> Iterator[Line]:
    """Say an error as a line: one learner's is not to cost a lent card's other figures."""
    try:
        yield from lines
    except Exception as error:  # noqa: BLE001 - whatever it is
        yield {"name": f"train_gpu/{what}", "failed": f"{type(error).__name__}: {error}"[:300]}


def learning(
    name: str, way: str, device: str, settings: dict[str, Any], seconds: float, plain: dict[str, float], against: str
) -> Iterator[Line]:
    """Measure one learner in one way; `plain` keeps each one's first rate."""
    gpu, first = device == "cuda", time.monotonic()
    made, step, _ = MAKERS[name](device, {**settings, **WAYS[way]})
    for _ in range(WARM):
        step()
    warmed = time.monotonic() - first
    rate, peak = measured(step, seconds, gpu=gpu)
    card = torch.cuda.get_device_name() if gpu else "cpu"
    also = {"ratio": rate / plain.setdefault(name, rate), "against": against, "on": card, "first_s": round(warmed, 1)}
    line: Line = {"name": f"train_gpu/{name}/{way}", "value": rate, "unit": "updates/s", **also}
    yield line | ({"peak_gb": peak} if gpu else {}) | ({"said": made.remarks} if made.remarks else {})


def shared_out(name: str, device: str, settings: dict[str, Any], count: int, seconds: float) -> Iterator[Line]:
    """Measure one batch learned by one process and by several, one a GPU where there are enough; by the clock."""
    if name == "segmentation":
        settings = {**settings, "batch": 2 * count}
    made, step, shared = MAKERS[name](device, settings)
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, count):
            if number > 1:
                config = made.config
                together = Together(made, name, config, 0, device, Path(folder), min(number, config.batch))
                together.begin()
                step = partial(together.step, shared)
            for _ in range(WARM):
                step()
            rates[number], _ = measured(step, seconds, gpu=device == "cuda", clock=time.perf_counter)
            also = {"ratio": rates[number] / rates[1], "against": "1_process", "gpus": torch.cuda.device_count()}
            yield {"name": f"train_gpu/{name}/{number}_processes", "value": rates[number], "unit": "updates/s", **also}


def training(device: str, settings: dict[str, Any], seconds: float, *, gpu: bool) -> Iterator[Line]:
    """Measure a DQN's whole loop with few and many agents at once, eight of their steps an update."""
    scenes = generated_scenes(Generated(tasks=("heart",), images=20), 2)
    seen = {"": device_sight.SHARE} | ({"_crops_on_the_cpu": 0.0} if gpu else {})
    for envs, (where, share) in product((32, 256), seen.items()):
        more = {"tasks": ("heart",), "envs": envs, "steps_per_update": 8.0, "warm_up": 4096, "capacity": 20_000}
        config = DqnConfig(**{**settings, **more})
        with tempfile.TemporaryDirectory() as folder:
            with patch.object(device_sight, "SHARE", share):
                practice = DqnPractice(Scenes(tuple(scenes), ()), config, 0, device, Path(folder))
            updates = envs // 8
            for _ in practice.train(updates):
                pass
            rate, _ = measured(lambda: [None for _ in practice.train(updates)], seconds, gpu=gpu)  # noqa: B023
        yield {"name": f"train_gpu/dqn/training/{envs}_agents{where}", "value": rate * envs, "unit": "steps/s"}


def loading(device: str, settings: dict[str, Any], seconds: float, *, gpu: bool) -> Iterator[Line]:
    """Measure APGA's whole loop on images that are changed: a batch while the one before is learned from, or after."""
    changes = {"flip": 0.5, "rotate": 0.3, "zoom": 0.3, "shift": 0.3, "intensity_shift": 0.3, "noise": 0.2}
    config = ApgaConfig(classes=CLASSES, pretrain_updates=0, augmentation=changes, **settings)
    shape, rng = (config.side, config.side, config.channels), np.random.default_rng(0)
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.png" for number in range(2 * config.batch)]
        for path in paths:
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
        examples = tuple(Example(path.name, path, number % 2, path.name) for number, path in enumerate(paths))
        for way in ("when_needed", "one_ahead"):
            practice = ApgaPractice(Labelled(examples, (), ()), config, 0, device, Path(folder) / way)
            practice._ahead = way == "one_ahead"
            rate, _ = measured(lambda: [None for _ in practice.train(4)], seconds, gpu=gpu, clock=time.perf_counter)  # noqa: B023
            rates.append(4 * rate)
            also = {"ratio": rates[-1] / rates[0], "against": "when_needed"}
            yield {"name": f"train_gpu/apga/changed_images/{way}", "value": rates[-1], "unit": "updates/s", **also}


def measured(step: Step, seconds: float, *, gpu: bool, clock: Callable[[], float] | None = None) -> tuple[float, float]:
    """Return steps a second, and the most of a GPU's memory that was held, in GB."""
    clock = clock or (time.perf_counter if gpu else time.process_time)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    began, done = clock(), 0
    while done < WARM or clock() - began < seconds:
        step()
        done += 1
    if gpu:
        torch.cuda.synchronize()
    rate = done / (clock() - began)
    return rate, round(torch.cuda.max_memory_allocated() / 1e9, 2) if gpu else 0.0
