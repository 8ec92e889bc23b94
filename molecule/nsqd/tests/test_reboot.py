"""What is left of it all when the machine went down and came up again."""

import subprocess

from conftest import PREFIX, Nsqd, until
from testinfra.host import Host

GREET = """
import socket
for last in 11, 12, 14, 15, 16:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", (f"10.89.78.{last}", 9))
"""


def test_everything_is_back_after_a_reboot(nsqd: Nsqd, active: Host, topic: str) -> None:
    nsqd.publish(topic, 5)
    command = ["podman", "restart", f"{PREFIX}svc506"]
    subprocess.run(command, check=True, capture_output=True)
    # podman gave the container another hardware address; a packet from there is what its neighbours learn it by.
    active.check_output("python3 -c %s", GREET)
    until(nsqd.answers)
    assert nsqd.channel(topic)["depth"] == 5
    assert "table inet slowjobs" in active.check_output("nft list tables").splitlines()
