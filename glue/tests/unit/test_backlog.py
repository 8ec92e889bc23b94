from datetime import UTC, datetime

from slowjobs import documents, kafka, nsq
from slowjobs.bridge import backlog


def _record(offset: int, *, partition: int = 0, size: int = 10) -> kafka.Record:
    return kafka.Record(documents.Position("lane", partition, offset), b"x" * size, datetime.now(UTC))


def test_a_batch_is_never_larger_than_nsqd_takes_and_never_empty() -> None:
    waiting = backlog.Backlog()
    for offset, size in enumerate((nsq.MAX_BATCH_BYTES + 1, *[900_000] * 6, *[10] * 150)):
        waiting.add(_record(offset, size=size))
    taken = []
    while waiting:
        taken.append(len(waiting.head(nsq.FIRST_BATCH, nsq.MAX_BATCH_BYTES)))
        waiting.remove(0, taken[-1])
    assert taken == [1, 4, 100, 52]


def test_a_batch_is_of_one_partition_and_the_partitions_take_turns() -> None:
    waiting = backlog.Backlog()
    for offset in range(150):
        waiting.add(_record(offset, partition=0))
    for offset in range(10):
        waiting.add(_record(offset, partition=1))
    taken = []
    while waiting:
        batch = waiting.head(nsq.FIRST_BATCH, nsq.MAX_BATCH_BYTES)
        (partition,) = {record.position.partition for record in batch}
        taken.append((partition, len(batch)))
        waiting.remove(partition, len(batch))
    assert taken == [(0, 100), (1, 10), (0, 50)]


def test_kafka_is_asked_for_more_only_when_little_is_left() -> None:
    waiting = backlog.Backlog()
    for offset in range(5000):
        waiting.add(_record(offset))
    assert waiting.held_back
    waiting.remove(0, 3000)
    assert waiting.held_back
    waiting.remove(0, 1000)
    assert not waiting.held_back


def test_what_is_passed_leaves_and_makes_room() -> None:
    waiting = backlog.Backlog()
    for offset in range(5000):
        waiting.add(_record(offset, partition=offset % 2))
    waiting.pass_to(0, 4998)
    assert len(waiting) == 2501
    waiting.pass_to(1, 9999)
    waiting.pass_to(7, 9999)
    assert [record.position.offset for record in waiting.head(10, 1000)] == [4998]
    assert not waiting.held_back
