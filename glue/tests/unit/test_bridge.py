import asyncio
from datetime import UTC, datetime

from slowjobs import documents, kafka, nsq, settings
from slowjobs.bridge import bridge


def test_a_batch_is_never_larger_than_nsqd_takes_and_never_empty() -> None:
    async def batches() -> list[int]:
        lane = bridge._Lane(
            "lane", settings.Lane(kind="fixity", pool="fixity"), settings.JobKind(type="job", key=("file_id",))
        )
        for size in (nsq.MAX_BATCH_BYTES + 1, *[900_000] * 6, *[10] * 150):
            lane.add(kafka.Record(documents.Position("lane", 0, 0), b"x" * size, datetime.now(UTC)))
        taken = []
        while lane.fetched:
            taken.append(len(lane.take(nsq.MAX_BATCH)))
        assert lane.fetched_bytes == 0
        return taken

    assert asyncio.run(batches()) == [1, 4, 100, 52]
