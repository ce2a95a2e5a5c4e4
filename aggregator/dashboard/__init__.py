"""The operator's pages: read-only, server-rendered, served by the aggregator's own process."""

from aggregator.dashboard.app import make_app

__all__ = ["make_app"]
