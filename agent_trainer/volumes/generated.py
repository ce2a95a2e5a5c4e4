"""Made volumes: a bright ball and a darker box at random places in noise, for trials and tests."""

import numpy as np
import numpy.typing as npt

from agent_trainer.volumes.settings import MadeVolumes

SHAPES = ("ball", "box")
LEVELS = (0.0, 100.0, 60.0)  # of the background, of a ball and of a box
TOP, TOP_LEVEL = 0.9, 120.0  # behind this share of the height it is brighter than either; no class
NOISE = 15.0
AIR_HU, PER_LEVEL_HU = -200.0, 5.0  # of a CT: as much as soft tissue differs with contrast agent


def made_volume(settings: MadeVolumes, number: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Make one volume float32[size, size, size] and its labels: 0, 1 in the ball, 2 in the box.

    The same settings give the same volume to the last bit, whatever others are made.
    """
    rng = np.random.default_rng([settings.seed, number])
    size = settings.size
    radius = size * rng.uniform(0.12, 0.18)
    half = size * rng.uniform(0.10, 0.16, 3)
    places = [rng.uniform(0.2, 0.7, 3) * size for _ in SHAPES]
    # The ball lies on one side of the middle and the box on the other, so that they never overlap.
    places[0][0], places[1][0] = size * rng.uniform(0.2, 0.3), size * rng.uniform(0.7, 0.8)
    at = np.indices((size, size, size), np.float64) + 0.5
    labels = np.zeros((size, size, size), np.uint8)
    labels[((at - places[0].reshape(3, 1, 1, 1)) ** 2).sum(0) <= radius**2] = 1
    labels[(np.abs(at - places[1].reshape(3, 1, 1, 1)) <= half.reshape(3, 1, 1, 1)).all(0)] = 2
    values = np.array(LEVELS)[labels]
    values[..., round(TOP * size) :] = TOP_LEVEL
    values += rng.normal(0, NOISE, labels.shape)
    if settings.modality == "ct":
        values = AIR_HU + PER_LEVEL_HU * values
    return values.astype(np.float32), labels
