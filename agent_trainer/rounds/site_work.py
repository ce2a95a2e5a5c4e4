"""A site's part of a round: validate, take the federation's counts, train, hand the replay keys over, answer.

Learner, replay and searches stay in memory between rounds. What was answered is kept until the next order, so that an
order that comes twice (its answer was lost) costs no second training.
"""

import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from agent_trainer.config import DqnConfig, read_config
from agent_trainer.dqn import Learner, Practice, train
from agent_trainer.environment import Searches
from agent_trainer.evaluation import evaluate
from agent_trainer.replay import Estimate, Replay
from agent_trainer.rounds.edge_talk import EdgeTalk
from agent_trainer.rounds.layout import Vector, check_layout, flatten, layout_of, unflatten
from agent_trainer.rounds.models import Model, Models
from agent_trainer.rounds.wire import EXAMPLES, Order
from agent_trainer.scenes.sources import SceneSource, Scenes, load_scenes
from cairn import codec, kernels
from cairn.errors import CairnError, PlanMismatch, PolicyError
from cairn.files import write_atomically
from cairn.hashing import Keys
from cairn.plan import ReplayPlan, ReplayRangesPlan, fingerprint

BUDGET: Final = 0.8  # of a round's deadline, after which a site ends its training and answers
TELL_EVERY_S: Final = 2.0


@dataclass(frozen=True)
class SiteSettings:
    """What the edge node decides.

    runs     patterns of run names that this site takes part in
    folder   of the site's own files: models, learner states, frames
    spool    where replay keys are handed to the edge
    threads  of torch
    """

    runs: Sequence[str]
    sources: Sequence[SceneSource]
    device: str
    threads: int
    folder: Path
    spool: Path
