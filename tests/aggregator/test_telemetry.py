"""Logs that a machine can read and that hold nothing of a patient; metrics that are nobody's but this aggregator's."""

import json
from io import StringIO

from prometheus_client import generate_latest

from aggregator.telemetry import make_log, make_metrics


def test_a_log_entry_is_one_json_object_a_line_with_time_and_level() -> None:
    stream = StringIO()
    log = make_log(stream)
    log.info("merged", study="map", sites=3)
    log.warning("naïve\nlines")
    log.debug("not shown")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {"event": "merged", "level": "info", "study": "map", "sites": 3}
    assert (second["event"], second["level"]) == ("naïve\nlines", "warning")


def test_a_traceback_says_where_but_not_with_which_values() -> None:
    def deep(table: list[str]) -> None:
        raise ValueError(f"{len(table)} rows")

    stream = StringIO()
    try:
        deep(["patient Smith"])
    except ValueError as error:
        make_log(stream).error("failed", exc_info=error)
    assert "Smith" not in stream.getvalue()
    exception = json.loads(stream.getvalue())["exception"][0]
    assert (exception["exc_type"], exception["exc_value"]) == ("ValueError", "1 rows")
    assert exception["frames"][-1]["name"] == "deep"


def test_two_aggregators_in_one_process_count_for_themselves() -> None:
    one, other = make_metrics(), make_metrics()
    one.uploads.inc()
    one.stage_seconds.labels("counts").observe(3)
    assert b"cairn_uploads_total 1.0" in generate_latest(one.registry)
    assert b'cairn_stage_seconds_count{stage="counts"} 1.0' in generate_latest(one.registry)
    assert b"cairn_uploads_total 0.0" in generate_latest(other.registry)
