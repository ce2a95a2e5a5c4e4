"""The Flower app of a site: it reads the order, hands it to the site's work, and writes the answer."""

from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from agent_trainer.rounds.layout import Vector
from agent_trainer.rounds.wire import Order, answer, read_order
from cairn.run import GOALS


class Work(Protocol):
    """What a site does with an order."""

    def train(self, order: Order, weights: Vector) -> tuple[dict[str, float], Vector | None]:
        """Train for a round; returns numbers and the site's weights, of a masked run numbers alone."""

    def job(self, order: Order, weights: Vector) -> tuple[dict[str, float], Vector | None]:
        """Do a search's job, or a leg of one at several sites; returns numbers, and weights that are to be joined."""

    def evaluate(self, order: Order, weights: Vector) -> dict[str, float]:
        """Measure weights on the site's validation scenes."""


def make_app(work: Work) -> ClientApp:
    """Make the app: train and evaluate, of every algorithm."""
    app = ClientApp()

    def train(message: Message, _: Context) -> Message:
        order, weights = read_order(message)
        metrics, trained = work.job(order, weights) if order.updates else work.train(order, weights)
        return answer(metrics, trained, message)

    def evaluate(message: Message, _: Context) -> Message:
        order, weights = read_order(message)
        return answer(work.evaluate(order, weights), None, message)

    for name in GOALS:
        app.train(name)(train)
        app.evaluate(name)(evaluate)
    return app
