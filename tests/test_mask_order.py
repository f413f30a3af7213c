"""The order of one camera's masks: newer frames only, one worker at a time, and nobody is locked out for long.

What both queues promise of it is in test_work_queue; here are the rules of time.
"""

from pipeline.mask_order import FORGET_S, TURN_S, MaskOrder, Turn, frames_after
from pipeline.messages import FrameId


def take(order: MaskOrder, sequence: int, now_s: float, *, worker: str = "a", epoch: int = 7) -> Turn:
    """Ask for the turn of a frame whose job has the same number."""
    return order.take(FrameId(epoch, sequence), entry=f"{epoch}-{sequence}", worker=worker, now_s=now_s)


def test_a_turn_that_is_not_ended_holds_others_up_only_so_long() -> None:
    order = MaskOrder()
    assert take(order, 1, 0.0) is Turn.MINE
    assert take(order, 2, 0.1, worker="b") is Turn.WAIT
    assert take(order, 2, TURN_S, worker="b") is Turn.MINE


def test_a_worker_does_not_wait_for_itself() -> None:
    order = MaskOrder()
    assert [take(order, sequence, 0.0) for sequence in (1, 2, 3)] == [Turn.MINE] * 3


def test_a_job_that_another_worker_was_given_too_waits_for_the_end_of_the_turn() -> None:
    order = MaskOrder()
    take(order, 1, 0.0)
    assert take(order, 1, 0.1, worker="b") is Turn.WAIT
    order.end("7-1")
    assert take(order, 1, 0.2, worker="b") is Turn.OVER


def test_a_packet_that_was_queued_twice_has_one_turn() -> None:
    order = MaskOrder()
    take(order, 1, 0.0)
    assert order.take(FrameId(7, 1), entry="other", worker="a", now_s=1.0) is Turn.OVER


def test_the_end_of_an_older_turn_leaves_the_newest_open() -> None:
    order = MaskOrder()
    take(order, 1, 0.0)
    take(order, 2, 0.0)
    order.end("7-1")
    assert take(order, 3, 0.1, worker="b") is Turn.WAIT


def test_a_waiting_frame_that_is_overtaken_is_over() -> None:
    order = MaskOrder()
    take(order, 1, 0.0)
    assert take(order, 2, 0.0, worker="b") is Turn.WAIT
    take(order, 3, 0.0)
    assert take(order, 2, 9.0, worker="b") is Turn.OVER


def test_a_camera_that_draws_an_old_epoch_again_is_served_after_a_while() -> None:
    order = MaskOrder()
    take(order, 90, 0.0, epoch=1)
    take(order, 0, 1.0, epoch=2)
    assert take(order, 0, 2.0, epoch=1) is Turn.OVER
    take(order, 1, 60.0, epoch=2)
    assert take(order, 0, 1.0 + FORGET_S, epoch=1) is Turn.MINE


def test_a_camera_that_draws_its_last_epoch_again_is_served_after_a_silence() -> None:
    order = MaskOrder()
    take(order, 90, 0.0)
    assert take(order, 0, FORGET_S - 1) is Turn.OVER
    assert take(order, 0, FORGET_S) is Turn.MINE


def test_frames_are_so_far_apart_also_where_sequences_begin_again() -> None:
    wrap = 1 << 32
    pairs = [(3, 8), (8, 3), (5, 5), (wrap - 2, 3), (3, wrap - 2)]
    assert [frames_after(FrameId(7, later), FrameId(7, one)) for one, later in pairs] == [5, -5, 0, 5, -5]
