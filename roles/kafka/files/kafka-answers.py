#!/usr/bin/python3
"""Wait until a Kafka broker answers: kafka-answers ADDRESS PORT SECONDS.

Asks for the cluster's metadata, which names a broker only once it has joined its cluster. Exit 0 then, 1 when the time
is over, or at once when the process that systemd names in MAINPID is gone.
Kafka's own tools would do, but each is a JVM of a second or two.
"""

import os
import socket
import struct
import sys
import time
from pathlib import Path

#: seconds between two tries
INTERVAL = 0.1
#: seconds that one answer may take
TIMEOUT = 5.0
#: the protocol's number of the request Metadata; version 1 is understood by every release so far
METADATA, VERSION = 3, 1
#: of its answer: length, correlation id, number of brokers
HEAD = struct.Struct(">iii")


def brokers(address: str, port: int) -> int:
    """How many brokers the cluster has, in the answer of the one at this address."""
    with socket.create_connection((address, port), timeout=TIMEOUT) as connection:
        # Header: request, version, correlation id, no client id; body: an empty list of topics.
        request = struct.pack(">hhihi", METADATA, VERSION, 1, -1, 0)
        connection.sendall(struct.pack(">i", len(request)) + request)
        answer = b""
        while len(answer) < HEAD.size:
            part = connection.recv(HEAD.size - len(answer))
            if not part:
                raise ConnectionError("the connection was closed without an answer")
            answer += part
    _, correlation, count = HEAD.unpack(answer)
    if correlation != 1:
        raise ConnectionError("what answers there is not Kafka")
    return int(count)


def main() -> None:
    """Ask until there is an answer or no hope of one."""
    address, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    deadline = time.monotonic() + seconds
    pid = os.environ.get("MAINPID")
    while True:
        if pid is not None and not Path(f"/proc/{pid}").exists():
            sys.exit("Kafka has ended")
        try:
            if brokers(address, port) > 0:
                return
            problem = "it has not joined its cluster"
        except OSError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            sys.exit(f"no answer of a broker at {address}:{port} after {seconds:g} s: {problem}")
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main()
