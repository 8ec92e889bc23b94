"""How far the bridge has come with each lane, by what it has committed: known whether it runs or not."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slowjobs import kafka
from slowjobs.bridge import bridge, commit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from slowjobs import settings


@dataclass(frozen=True)
class Progress:
    """Of one partition. ``mark``: the first offset that was not handed to NSQ; ``end``: of the next message to come.

    ``undone``: offset -> nsqd host, of what is below ``listed``, was handed to NSQ and is not done; ``listed``: from
    here to the mark all counts as such, on hosts that are not known.
    """

    mark: int
    end: int
    undone: Mapping[int, str]
    listed: int

    @classmethod
    def of(cls, reach: kafka.Reach) -> Progress:
        """Read what the bridge has committed. Raises documents.UnknownVersionError."""
        first, said = reach.next, commit.read(reach.metadata, reach.next)
        if said.mark > reach.end:
            # Somebody has deleted the topic and made it anew, as the bridge will find out.
            first, said = 0, commit.read("", 0)
        # What retention took, nobody gets any more.
        return cls(max(first, said.mark), reach.end, said.undone, max(first, said.listed))

    @property
    def unpublished(self) -> int:
        """Messages that were not handed to NSQ."""
        return self.end - self.mark

    @property
    def outstanding(self) -> int:
        """Messages that were handed to NSQ and are not done."""
        return len(self.undone) + self.mark - self.listed

    def is_done(self, offset: int) -> bool:
        """Tell whether what is at ``offset`` came to its end."""
        return offset < self.listed and offset not in self.undone


def reach(
    config: settings.CliSettings, secrets: settings.Credentials, topics: Iterable[str]
) -> dict[str, list[kafka.Reach] | None]:
    """Return ``topic -> the bridge's commit in each partition``, to be read by ``Progress.of``; None: no such topic.

    Raises confluent_kafka.KafkaException when no broker answers.
    """
    with contextlib.closing(kafka.reader(config.kafka, secrets, group=bridge.GROUP)) as client:
        return kafka.reach(client, topics)
