"""A real Kafka on 127.0.0.1: one KRaft node that is broker and controller."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from support import artefacts
from support.processes import LocalProcess, free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: bytes; what `setup` gives result and dead-letter topics, so that a producer of these tests may fill them too.
LARGE_MESSAGE_BYTES = 21 * 1024 * 1024
#: seconds that reading all that is there takes at most.
_READ_SECONDS = 60
#: what a broker that has just come back says.
_NO_LEADER_YET = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError._TIMED_OUT)
#: what a consumer says for good once it was told that there are no brokers (librdkafka's #5301).
_BROKERS_FORGOTTEN = (KafkaError._UNKNOWN_PARTITION, KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT)
#: Kafka wants 16 bytes in base64.
CLUSTER_ID = "c2xvd2pvYnMtdGVzdHMtMQ"
#: A small heap and no late optimisation: the node starts in two seconds and the machine has two cores.
JVM = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xms256m", "-Xmx512m"]


class KafkaClient:
    """What is asked of a Kafka, wherever it runs."""

    def __init__(self, address: str) -> None:
        self.address = address

    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.address, "log_level": 0})

    def create_topic(self, name: str, *, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        topic = NewTopic(name, partitions, 1, config=dict(config or {}))
        # Kept in a variable: the client gives up what it was asked as soon as nobody holds it.
        admin = self.admin()
        admin.create_topics([topic])[name].result(20)

    def topics(self) -> set[str]:
        return set(self.admin().list_topics(timeout=10).topics)

    def partitions(self, topic: str) -> int:
        return len(self.admin().list_topics(topic, timeout=10).topics[topic].partitions)

    def topic_config(self, name: str) -> dict[str, str]:
        """Return the settings of a topic that are in force, as text."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, name)
        admin = self.admin()
        entries = admin.describe_configs([resource])[resource].result(20)
        return {entry.name: entry.value for entry in entries.values()}

    def produce(
        self,
        topic: str,
        values: Iterable[bytes | None],
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> int:
        """Write ``values`` and return how many Kafka acknowledged: all of them, or AssertionError."""
        refused: list[object] = []
        acknowledged = 0

        def delivered(error: object, _message: object) -> None:
            nonlocal acknowledged
            if error is None:
                acknowledged += 1
            else:
                refused.append(error)

        producer = Producer(
            {
                "bootstrap.servers": self.address,
                "linger.ms": 5,
                "message.max.bytes": LARGE_MESSAGE_BYTES,
                "queue.buffering.max.messages": 200_000,
                "log_level": 0,
            }
        )
        for value in values:
            producer.produce(topic, value, key, on_delivery=delivered, headers=dict(headers or {}))
        assert producer.flush(60) == 0, f"Kafka took only {acknowledged} within 60 s"
        assert not refused, f"Kafka refused {len(refused)}: {refused[0]}"
        return acknowledged

    def tail(self, topic: str) -> Tail:
        """Return a reader of all that a topic holds and of all that comes."""
        return Tail(self.address, topic)

    def committed(self, group: str, topic: str) -> int:
        """Return the sum of a group's committed offsets over a topic's partitions, 0 where there is none."""
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": group, "log_level": 0})
        try:
            partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            asked = [TopicPartition(topic, partition) for partition in partitions]
            return sum(max(0, answer.offset) for answer in consumer.committed(asked, timeout=10))
        finally:
            consumer.close()


class Kafka(KafkaClient, LocalProcess):
    """One node for all tests; each test has topics of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        KafkaClient.__init__(self, f"127.0.0.1:{free_port()}")
        properties = folder / "server.properties"
        properties.write_text(self._properties(folder), encoding="utf-8")
        java = [str(artefacts.java()), *JVM, "-cp", artefacts.kafka_classpath()]
        subprocess.run(
            [*java, "kafka.tools.StorageTool", "format", "--standalone", "-t", CLUSTER_ID, "-c", str(properties)],
            check=True,
            capture_output=True,
        )
        LocalProcess.__init__(self, "kafka", [*java, "kafka.Kafka", str(properties)], log=folder / "kafka.log")

    def _properties(self, folder: Path) -> str:
        controller = f"127.0.0.1:{free_port()}"
        properties = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.bootstrap.servers": controller,
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{controller}",
            "log.dirs": folder / "data",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            # After a kill the controller waits for the old session to end before it takes the broker back.
            "broker.session.timeout.ms": 2000,
            "broker.heartbeat.interval.ms": 500,
            # `setup` makes the topics; one that a typo makes would hide that it did not.
            "auto.create.topics.enable": "false",
        }
        return "".join(f"{name}={value}\n" for name, value in properties.items())

    def start(self) -> None:
        super().start()
        wait_until(self._answers, 30, "Kafka to answer", while_true=self.trouble)

    def _answers(self) -> bool:
        try:
            return bool(self.admin().list_topics(timeout=1).brokers)
        except KafkaException:
            return False


class Tail:
    """Reads a topic from its first offset; ``messages`` grows with each ``poll``."""

    def __init__(self, address: str, topic: str) -> None:
        self._address = address
        self._topic = topic
        self._consumer = self._open()
        self.messages: list[Message] = []
        #: partition -> the next offset
        self._read: dict[int, int] = {}

    def poll(self) -> list[Message]:
        """Read up to what is the end now, and return all that was ever read."""
        if not self._read:
            partitions = self._consumer.list_topics(self._topic, timeout=10).topics[self._topic].partitions
            # Somebody may have deleted the oldest.
            self._read = {partition: self._range(partition)[0] for partition in partitions}
            self._assign()
        ends = {partition: self._range(partition)[1] for partition in self._read}
        deadline = time.monotonic() + _READ_SECONDS
        while any(self._read[partition] < end for partition, end in ends.items()):
            assert time.monotonic() < deadline, f"{self._topic}: read {self._read} of {ends} in {_READ_SECONDS} s"
            for message in self._consumer.consume(1000, timeout=0.05):
                error = message.error()
                if error is None:
                    self.messages.append(message)
                    self._read[message.partition()] = message.offset() + 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    self._read[message.partition()] = message.offset()  # what lies before it is no message
                elif not error.retriable():
                    raise KafkaException(error)
        return self.messages

    def _open(self) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self._address,
                # Demanded by the client; nothing is ever committed.
                "group.id": "tests-tail",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
                "log_level": 0,
            }
        )

    def _assign(self) -> None:
        self._consumer.assign([TopicPartition(self._topic, *where) for where in self._read.items()])

    def _range(self, partition: int) -> tuple[int, int]:
        """Return the offset of the oldest message, and of the next to come."""
        return wait_until(lambda: self._range_now(partition), 20, f"a leader of {self._topic}")

    def _range_now(self, partition: int) -> tuple[int, int]:
        try:
            oldest, end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=5)
        except KafkaException as error:
            code = error.args[0].code()
            if code in _BROKERS_FORGOTTEN:
                self._consumer = self._open()
                self._assign()
            elif code not in _NO_LEADER_YET:
                raise
            raise ConnectionError(error.args[0].str()) from error
        return int(oldest), int(end)

    def values(self) -> list[bytes]:
        return [message.value() or b"" for message in self.poll()]

    def close(self) -> None:
        self._consumer.close()
