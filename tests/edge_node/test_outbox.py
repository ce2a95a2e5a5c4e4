"""The outbox."""

import pytest

from cairn.codec import read_tally
from cairn.errors import PlanError
from cairn.plan import Plan
from edge_node.outbox import Outbox

from .conftest import make_plan, make_tally


def test_a_sealed_tally_is_pending_and_holds_what_was_counted(outbox):
    plan, of = make_plan()
    sealed = outbox.seal(plan, make_tally(plan, of))
    assert (sealed.study, sealed.stage, sealed.window, sealed.fingerprint) == ("tumour", "moments", 0, of)
    assert outbox.listed("pending") == [sealed]
    assert (read_tally(sealed.path).tables["second"] == make_tally(plan, of).tables["second"]).all()


def test_a_plan_is_sealed_once(outbox):
    plan, of = make_plan()
    first = outbox.seal(plan, make_tally(plan, of, seed=1))
    digest = first.digest()
    moved = outbox.move(first, "sent")
    again = outbox.seal(plan, make_tally(plan, of, seed=2))
    assert again == moved
    assert again.digest() == digest
    assert outbox.listed("pending") == []


def test_the_state_of_a_tally_survives_a_restart(outbox, tmp_path):
    states = {}
    for window, state in enumerate(("pending", "sent", "parked")):
        plan, of = make_plan(window=window)
        outbox.move(outbox.seal(plan, make_tally(plan, of)), state)
        states[of] = state
    reopened = Outbox(tmp_path / "outbox")
    for of, state in states.items():
        found = reopened.find(of)
        assert found is not None
        assert found[0] == state
    assert reopened.find(b"\0" * 32) is None


def test_a_half_written_tally_of_a_crash_is_gone_after_a_restart(outbox, tmp_path):
    part = tmp_path / "outbox" / "pending" / ".tumour.moments.0.tally.77.part"
    part.write_bytes(b"CAIRN")
    assert Outbox(tmp_path / "outbox").listed("pending") == []
    assert not part.exists()


def test_a_full_disk_leaves_nothing_half_written(outbox, tmp_path, monkeypatch):
    plan, of = make_plan()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            outbox.seal(plan, make_tally(plan, of))
    assert list((tmp_path / "outbox" / "pending").iterdir()) == []
    assert outbox.find(of) is None
    outbox.seal(plan, make_tally(plan, of))
    assert len(outbox.listed("pending")) == 1


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "A", "a.b", "x" * 64])
def test_a_study_whose_name_is_a_path_is_never_written(outbox, name):
    plan, of = make_plan()
    with pytest.raises(PlanError, match="name"):
        outbox.seal(Plan(name, 0, plan.stage), make_tally(plan, of))


def test_damage_on_the_disk_is_seen(outbox):
    plan, of = make_plan(bands=20)
    sealed = outbox.seal(plan, make_tally(plan, of))
    assert sealed.intact()
    content = bytearray(sealed.path.read_bytes())
    content[-10] ^= 1
    sealed.path.write_bytes(content)
    assert not sealed.intact()
