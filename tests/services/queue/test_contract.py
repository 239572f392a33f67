"""What both adapters of the queue promise: every test runs on memory and on a real Redis."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from lodestar.errors import FailedPrecondition
from lodestar.queue.port import Claim, DeadLetter, LearnerQueue, WorkerQueue
from lodestar.records import Rollout
from tests.services.queue.conftest import Bench, a_rollout, a_ticket

SOON = 0.5


async def take(worker: WorkerQueue, count: int = 10) -> list[Claim]:
    """Claims, waiting a moment for the first."""
    return await worker.take(count, SOON)


async def test_a_ticket_comes_back_as_its_rollout_and_is_gone_once_settled(bench: Bench, learner: LearnerQueue) -> None:
    ticket = a_ticket(bench)
    assert learner.issue([ticket]) == 1
    (claim,) = await take(bench.worker())
    assert (claim.ticket, claim.deliveries) == (ticket, 1)
    assert await bench.worker().finish(claim, a_rollout(ticket))
    (delivery,) = learner.receive(SOON)
    assert delivery.item == a_rollout(ticket)
    assert learner.depth().finished == 1
    learner.settle([delivery.receipt])
    learner.settle([delivery.receipt])
    depth = learner.depth()
    assert (depth.waiting, depth.taken, depth.finished, depth.dead) == (0, 0, 0, 0)
    assert learner.receive(0.01) == []


async def test_tickets_are_taken_in_the_order_of_issue_and_no_more_than_asked_for(
    bench: Bench, learner: LearnerQueue
) -> None:
    learner.issue([a_ticket(bench, index) for index in range(5)])
    worker = bench.worker()
    assert [claim.ticket.index for claim in await take(worker, 2)] == [0, 1]
    assert [claim.ticket.index for claim in await take(worker, 10)] == [2, 3, 4]


async def test_issuing_again_adds_only_what_the_queue_does_not_hold(bench: Bench, learner: LearnerQueue) -> None:
    tickets = [a_ticket(bench, index) for index in range(4)]
    assert learner.issue(tickets[:2]) == 2
    worker = bench.worker()
    taken = await take(worker, 1)
    await worker.finish(taken[0], a_rollout(taken[0].ticket))
    assert learner.issue(tickets) == 2  # the finished one is held until it is settled
    assert [claim.ticket.index for claim in await take(worker)] == [1, 2, 3]


async def test_the_second_finisher_is_refused_and_counted(bench: Bench, learner: LearnerQueue) -> None:
    learner.issue([a_ticket(bench)])
    slow, quick = bench.worker(), bench.worker()
    (first,) = await take(slow)
    await bench.let_claims_expire()
    (second,) = await take(quick)
    assert second.deliveries == 2
    assert await quick.finish(second, a_rollout(second.ticket, "quick"))
    assert not await slow.finish(first, a_rollout(first.ticket, "slow"))
    (delivery,) = learner.receive(SOON)
    assert isinstance(delivery.item, Rollout)
    assert delivery.item.worker == "quick"
    assert learner.depth().duplicates_refused == 1


async def test_a_worker_that_lost_its_claim_may_still_finish_first(bench: Bench, learner: LearnerQueue) -> None:
    learner.issue([a_ticket(bench)])
    slow, other = bench.worker(), bench.worker()
    (first,) = await take(slow)
    await bench.let_claims_expire()
    (second,) = await take(other)
    assert await slow.finish(first, a_rollout(first.ticket))
    assert await other.heartbeat([second]) == [second]
    assert not await other.finish(second, a_rollout(second.ticket))


async def test_a_heartbeat_keeps_a_claim_and_its_absence_loses_it(bench: Bench, learner: LearnerQueue) -> None:
    learner.issue([a_ticket(bench)])
    holder, other = bench.worker(claim_seconds=0.4), bench.worker(claim_seconds=0.4)
    (claim,) = await take(holder)
    for _ in range(6):
        assert await holder.heartbeat([claim]) == []
        assert await other.take(1, 0.1) == []
    (taken,) = await other.take(1, 2.0)
    assert taken.ticket.id == claim.ticket.id
    assert await holder.heartbeat([claim]) == [claim]
    assert await other.heartbeat([taken]) == []


async def test_a_released_ticket_is_taken_at_once_and_counts_nothing(bench: Bench, learner: LearnerQueue) -> None:
    learner.issue([a_ticket(bench)])
    first, second = bench.worker(claim_seconds=60), bench.worker(claim_seconds=60, max_deliveries=1)
    for _ in range(3):
        (claim,) = await first.take(1, 2.0)
        assert claim.deliveries == 1
        await first.release(claim)
        await first.release(claim)
    (claim,) = await second.take(1, 2.0)
    assert claim.deliveries == 1


async def test_own_errors_are_counted_and_the_last_allowed_one_kills_the_ticket(
    bench: Bench, learner: LearnerQueue
) -> None:
    learner.issue([a_ticket(bench)])
    worker = bench.worker("w", max_attempts=3)
    for attempt in range(3):
        (claim,) = await take(worker)
        await worker.fail(claim, f"bad prompt {attempt}")
        await worker.fail(claim, "said twice")  # not the holder any more: not counted
    (delivery,) = learner.receive(SOON)
    assert delivery.item == DeadLetter(a_ticket(bench), "bad prompt 2", 3, "w")
    assert learner.depth().dead == 1
    assert learner.issue([a_ticket(bench)]) == 0
    learner.settle([delivery.receipt])
    assert learner.depth().dead == 0
    assert await worker.take(1, 0.1) == []


async def test_a_ticket_that_kills_its_workers_is_buried_at_the_delivery_cap(
    bench: Bench, learner: LearnerQueue
) -> None:
    learner.issue([a_ticket(bench)])
    for delivery in range(3):
        (claim,) = await take(bench.worker(max_deliveries=3))
        assert claim.deliveries == delivery + 1
        await bench.let_claims_expire()
    assert await bench.worker(max_deliveries=3).take(1, SOON) == []
    (dead,) = learner.receive(SOON)
    assert isinstance(dead.item, DeadLetter)
    assert "delivered 3 times" in dead.item.error


async def test_a_withdrawn_ticket_is_neither_taken_nor_finished(bench: Bench, learner: LearnerQueue) -> None:
    learner.issue([a_ticket(bench, 0), a_ticket(bench, 1), a_ticket(bench, 2)])
    worker = bench.worker()
    held, finished = await take(worker, 2)
    await worker.finish(finished, a_rollout(finished.ticket))
    learner.withdraw(["0.0.0", "0.1.0", "0.2.0", "9.9.9"])
    assert await worker.heartbeat([held]) == [held]
    assert not await worker.finish(held, a_rollout(held.ticket))
    await worker.fail(held, "late")
    await worker.release(held)
    assert await worker.take(1, 0.1) == []
    assert [delivery.item.ticket.index for delivery in learner.receive(SOON)] == [1]
    assert learner.issue([a_ticket(bench, 0)]) == 1


async def test_a_new_incarnation_deletes_the_old_one_and_workers_follow(bench: Bench, learner: LearnerQueue) -> None:
    learner.issue([a_ticket(bench, 0), a_ticket(bench, 1)])
    worker = bench.worker()
    old, older = await take(worker)
    await worker.finish(older, a_rollout(older.ticket))
    successor = bench.learner()
    successor.open(bench.run, "b")
    assert successor.depth().taken == 0
    assert not await worker.finish(old, a_rollout(old.ticket))
    assert await worker.heartbeat([old]) == [old]
    await worker.fail(old, "late")
    await worker.release(old)
    successor.issue([a_ticket(bench, 7, incarnation="b")])
    (claim,) = await worker.take(10, 3.0)
    assert claim.ticket.incarnation == "b"
    assert await worker.finish(claim, a_rollout(claim.ticket))
    assert [delivery.item.ticket.index for delivery in successor.receive(SOON)] == [7]
    assert successor.depth().duplicates_refused == 0
    successor.close()


async def test_a_replaced_learner_is_told_so(bench: Bench, learner: LearnerQueue) -> None:
    successor = bench.learner()
    successor.open(bench.run, "b")
    with pytest.raises(FailedPrecondition, match="another learner opened run"):
        learner.issue([a_ticket(bench)])
    with pytest.raises(FailedPrecondition, match="another learner opened run"):
        learner.lost_contents()
    successor.issue([a_ticket(bench, incarnation="b")])
    assert len(await bench.worker().take(1, 3.0)) == 1
    successor.close()


async def test_lost_contents_is_said_once_and_issuing_again_repairs_it(bench: Bench, learner: LearnerQueue) -> None:
    tickets = [a_ticket(bench, index) for index in range(3)]
    learner.issue(tickets)
    worker = bench.worker()
    held, *_ = await take(worker)
    assert learner.depth().taken == 3
    assert not learner.lost_contents()
    bench.lose_everything()
    assert not await worker.finish(held, a_rollout(held.ticket))
    assert learner.depth().taken == 0
    assert learner.lost_contents()
    assert not learner.lost_contents()
    assert learner.issue(tickets) == 3
    claims = await worker.take(10, 3.0)
    assert len(claims) == 3
    for claim in claims:
        await worker.finish(claim, a_rollout(claim.ticket))
    assert len(learner.receive(SOON)) == 3


async def test_issuing_into_a_queue_that_lost_its_contents_works_and_is_reported(
    bench: Bench, learner: LearnerQueue
) -> None:
    bench.lose_everything()
    assert learner.issue([a_ticket(bench)]) == 1
    assert learner.lost_contents()
    assert not learner.lost_contents()


async def test_what_is_not_settled_arrives_again_after_a_loss_with_the_same_receipt(
    bench: Bench, learner: LearnerQueue
) -> None:
    learner.issue([a_ticket(bench)])
    worker = bench.worker()
    (claim,) = await take(worker)
    await worker.finish(claim, a_rollout(claim.ticket))
    (received,) = learner.receive(SOON)
    assert learner.receive(0.01) == []
    bench.lose_everything()
    assert learner.lost_contents()
    learner.settle([received.receipt])  # unknown now: ignored
    learner.issue([a_ticket(bench)])
    (claim,) = await worker.take(1, 3.0)
    await worker.finish(claim, a_rollout(claim.ticket))
    (again,) = learner.receive(SOON)
    assert again.item == received.item


async def test_a_waiting_worker_and_a_waiting_learner_are_woken(bench: Bench, learner: LearnerQueue) -> None:
    worker = bench.worker()
    waiting = asyncio.create_task(worker.take(1, 5.0))
    await asyncio.sleep(0.05)
    await asyncio.to_thread(learner.issue, [a_ticket(bench)])
    (claim,) = await asyncio.wait_for(waiting, 2)
    receiving = asyncio.create_task(asyncio.to_thread(learner.receive, 1.0))
    await asyncio.sleep(0.05)
    await worker.finish(claim, a_rollout(claim.ticket))
    assert len(await asyncio.wait_for(receiving, 2)) == 1


async def test_depth_counts_every_place_and_the_age_of_the_oldest(bench: Bench, learner: LearnerQueue) -> None:
    learner.issue([a_ticket(bench, index) for index in range(4)])
    worker = bench.worker(max_attempts=1)
    finished, dead, _ = await take(worker, 3)
    await worker.finish(finished, a_rollout(finished.ticket))
    await worker.fail(dead, "bad")
    await asyncio.sleep(0.1)
    depth = learner.depth()
    assert (depth.waiting, depth.taken, depth.finished, depth.dead) == (1, 1, 1, 1)
    assert 0.09 < depth.oldest_seconds < 5


async def test_two_runs_share_a_queue_without_meeting(bench: Bench, learner: LearnerQueue) -> None:
    other = bench.learner()
    other.open(f"{bench.run}-other", "a")
    other.issue([replace(a_ticket(bench), run=f"{bench.run}-other")])
    assert await bench.worker().take(1, 0.1) == []
    assert learner.issue([a_ticket(bench)]) == 1
    assert len(await take(bench.worker())) == 1
    other.close()
