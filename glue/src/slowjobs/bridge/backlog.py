"""What the bridge has fetched of a lane and not published, each partition on its own."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slowjobs import kafka

#: requests and bytes of a lane that wait here for room; Kafka keeps the rest. Holding back throws away what has come
#: from Kafka already, so it is done for many at a time.
_REQUESTS = 5000
_BYTES = 8 * 1024 * 1024


class Backlog:
    """Requests of one lane, in Kafka's order within a partition, the partitions in turn."""

    def __init__(self) -> None:
        self._partitions: dict[int, deque[kafka.Record]] = {}
        self._requests = 0
        self._bytes = 0
        self._held_back = False

    def __len__(self) -> int:
        return self._requests

    @property
    def held_back(self) -> bool:
        """Whether Kafka is to send no more of this lane: from full until it is low."""
        full = self._requests >= _REQUESTS or self._bytes >= _BYTES
        low = self._requests <= _REQUESTS // 4 and self._bytes <= _BYTES // 4
        self._held_back = full or (self._held_back and not low)
        return self._held_back

    def add(self, record: kafka.Record) -> None:
        """Append a request."""
        self._partitions.setdefault(record.position.partition, deque()).append(record)
        self._requests += 1
        self._bytes += len(record.value)

    def head(self, count: int, size: int) -> list[kafka.Record]:
        """Return the next requests of one partition: at least one, at most ``count``, and together ``size`` bytes."""
        queue = next(iter(self._partitions.values()))
        taken: list[kafka.Record] = []
        for record in queue:
            size -= len(record.value)
            if taken and (size < 0 or len(taken) == count):
                break
            taken.append(record)
        return taken

    def begins_with(self, record: kafka.Record) -> bool:
        """Tell whether ``record`` is still the next of its partition."""
        queue = self._partitions.get(record.position.partition)
        return queue is not None and queue[0] is record

    def remove(self, partition: int, count: int) -> None:
        """Take out the first ``count`` requests of a partition; another partition is next."""
        queue = self._partitions.pop(partition)
        for _ in range(count):
            self._bytes -= len(queue.popleft().value)
        self._requests -= count
        if queue:
            self._partitions[partition] = queue

    def pass_to(self, partition: int, end: int) -> None:
        """Take out what of a partition is before ``end``."""
        if partition in self._partitions:
            self.remove(partition, sum(record.position.offset < end for record in self._partitions[partition]))

    def next(self, partition: int) -> int:
        """Return the offset after the last request of a partition that waits here; 0 where none does."""
        queue = self._partitions.get(partition)
        return queue[-1].position.offset + 1 if queue else 0

    def drop(self, partition: int) -> None:
        """Forget a partition: Kafka gives it again."""
        self.pass_to(partition, self.next(partition))

    def created(self) -> float | None:
        """Return when the oldest that is next in its partition was produced, in seconds since 1970."""
        return min((queue[0].created.timestamp() for queue in self._partitions.values()), default=None)
