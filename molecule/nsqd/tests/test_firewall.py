"""What the role firewall promises, seen from the hosts that may and may not."""

import pytest
from conftest import ACTIVE_ADDRESS, container
from testinfra.host import Host

CONNECT = f"import socket, sys; socket.create_connection(('{ACTIVE_ADDRESS}', int(sys.argv[1])), timeout=2)"


@pytest.mark.parametrize(
    ("name", "port", "may"),
    [
        ("control1", 4150, True),
        ("control1", 4151, True),
        ("worker1", 4150, True),
        ("worker1", 4151, False),
        ("data1", 4150, False),
        ("data1", 4151, False),
        ("svc507", 4151, False),
        ("svc506", 4151, True),
    ],
)
def test_ports_are_open_to_whom_the_design_names(name: str, port: int, may: bool) -> None:
    tried = container(name).run("python3 -c %s %s", CONNECT, str(port))
    assert (tried.rc == 0) is may
    # Silence, not a refusal: a refused connection would look like a stopped service.
    assert may or "TimeoutError" in tried.stderr


def test_tables_of_others_are_left_alone(active: Host) -> None:
    active.check_output("nft add table inet somebody")
    try:
        active.check_output("systemctl reload slowjobs-firewall")
        active.check_output("systemctl restart slowjobs-firewall")
        assert "table inet somebody" in active.check_output("nft list tables").splitlines()
    finally:
        active.check_output("nft delete table inet somebody")
