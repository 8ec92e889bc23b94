"""What the role nsqd promises, as an operator would see it."""

import json
import re
import subprocess

import pytest
from conftest import ACTIVE_ADDRESS, PREFIX, Nsqd, play, until
from testinfra.host import Host

#: `systemd-analyze security` counts from 0 (closed) to 10 (open); each line that is left out adds some tenths
MOST_EXPOSURE = 2.0

#: nanoseconds, in which nsqd tells its flags
SECOND = 10**9

#: takes one message, keeps it (touched) until stdin closes, and finishes it
HOLD_ONE = """
import select, socket, struct, sys
connection = socket.create_connection((sys.argv[1], 4150))
connection.sendall(b"  V2SUB %s pool\\nRDY 1\\n" % sys.argv[2].encode())
stream = connection.makefile("rb")
while True:
    size, kind = struct.unpack(">ii", stream.read(8))
    frame = stream.read(size - 4)
    if kind == 2:
        break
    connection.sendall(b"NOP\\n")
print("holding", flush=True)
while not select.select([sys.stdin], [], [], 5)[0]:
    connection.sendall(b"NOP\\nTOUCH " + frame[10:26] + b"\\n")
connection.sendall(b"FIN " + frame[10:26] + b"\\nCLS\\n")
stream.read(4)
"""


def end_of_journal(host: Host) -> str:
    return (
        host.check_output("journalctl -n 1 --output=json --output-fields=__CURSOR")
        .split('"__CURSOR":"')[1]
        .split('"')[0]
    )


def test_nsqd_answers_as_the_release_and_host_that_were_asked_for(nsqd: Nsqd) -> None:
    info = json.loads(nsqd.ask("/info"))
    assert info["version"] == "1.3.0"
    assert info["broadcast_address"] == "svc506"


def test_nsqd_listens_on_its_own_address_and_no_other(active: Host) -> None:
    listening = active.check_output(
        "ss --no-header --listening --tcp --numeric '( sport >= :4150 and sport <= :4152 )'"
    )
    assert sorted(line.split()[3] for line in listening.splitlines()) == [
        f"{ACTIVE_ADDRESS}:4150",
        f"{ACTIVE_ADDRESS}:4151",
    ]


def test_a_spare_is_installed_but_stopped_and_disabled(spare: Host) -> None:
    assert spare.check_output("/opt/nsq/*/bin/nsqd --version").startswith("nsqd v1.3.0")
    assert not spare.service("nsqd").is_running
    assert not spare.service("nsqd").is_enabled


def test_nsqd_runs_as_its_own_user_and_hides_its_queue(active: Host) -> None:
    assert active.file("/var/lib/nsqd").mode == 0o700
    assert active.check_output("ps -o user= -p $(systemctl show --value -p MainPID nsqd)") == "nsqd"


def exposure(host: Host, unit: str) -> float:
    report = host.run(f"systemd-analyze security --no-pager {unit}").stdout
    found = re.search(r"exposure level for .*: ([0-9.]+)", report)
    assert found is not None, report
    return float(found[1])


def test_the_hardening_of_both_units_is_in_force(active: Host) -> None:
    for unit in ("nsqd.service", "slowjobs-firewall.service"):
        assert exposure(active, unit) <= MOST_EXPOSURE


def test_the_units_have_no_line_that_systemd_passes_over(active: Host) -> None:
    assert active.run("systemd-analyze verify nsqd.service slowjobs-firewall.service").stderr == ""


def test_the_queue_survives_a_kill_and_the_journal_tells_of_it(nsqd: Nsqd, active: Host, topic: str) -> None:
    nsqd.publish(topic, 100)
    before = nsqd.stats()["start_time"]
    active.check_output("systemctl kill --signal=SIGKILL nsqd")
    until(lambda: nsqd.answers() and nsqd.stats()["start_time"] > before)
    assert nsqd.channel(topic)["depth"] == 100
    assert "unclean stop" in active.check_output("journalctl -u nsqd -p warning --since=-60s --output=cat")


def test_a_clean_restart_by_hand_keeps_the_queue_and_is_not_called_unclean(
    nsqd: Nsqd, active: Host, topic: str
) -> None:
    nsqd.publish(topic, 10)
    cursor = end_of_journal(active)
    active.check_output("systemctl restart nsqd")
    # systemctl returned: it answers.
    assert nsqd.answers()
    assert nsqd.channel(topic)["depth"] == 10
    assert "unclean" not in active.check_output("journalctl -u nsqd --after-cursor=%s --output=cat", cursor)


def test_a_restart_waits_for_running_requests_and_unpauses_only_what_it_paused(
    nsqd: Nsqd, active: Host, topic: str
) -> None:
    paused = f"{topic[:50]}-operator"
    nsqd.make(paused)
    nsqd.ask(f"/channel/pause?topic={paused}&channel=pool", "POST")
    nsqd.publish(topic, 2)
    start = nsqd.stats()["start_time"]
    command = ["podman", "exec", "-i", f"{PREFIX}worker1", "python3", "-c", HOLD_ONE, ACTIVE_ADDRESS, topic]
    limit = 890 if nsqd.ask("/config/max_req_timeout") != str(890 * SECOND) else 880
    changed = ["--limit=svc506", "--tags=nsqd_configure", f"--extra-vars=nsqd_max_req_timeout_seconds={limit}"]

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "holding\n"
        refused = play(*changed, "--extra-vars=nsqd_drain_timeout_seconds=1")
        assert refused.returncode != 0
        assert "Got 1 requests in flight" in " ".join(refused.stdout.split())
        assert nsqd.stats()["start_time"] == start
        assert not nsqd.channel(topic)["paused"]
        worker.communicate("")
    until(lambda: nsqd.channel(topic)["in_flight_count"] == 0)

    # The unit is as wanted already; the restart is still due all the same.
    cursor = end_of_journal(active)
    done = play(*changed)
    assert done.returncode == 0, done.stdout
    assert nsqd.stats()["start_time"] > start
    assert nsqd.ask("/config/max_req_timeout") == str(limit * SECOND)
    assert not nsqd.channel(topic)["paused"]
    assert nsqd.channel(paused)["paused"]
    assert nsqd.channel(topic)["depth"] == 1
    words = active.check_output("journalctl -u nsqd --after-cursor=%s --output=cat", cursor)
    assert re.search(rf"/channel/pause\?topic={topic}&.*NSQ: bye.*/channel/unpause\?topic={topic}&", words, re.DOTALL)
    nsqd.ask(f"/topic/delete?topic={paused}", "POST")


def refusal(*arguments: str) -> str:
    """What a play says that refuses to begin."""
    refused = play(*arguments)
    assert refused.returncode != 0
    assert "changed=0" in refused.stdout
    said = " ".join(refused.stdout.split())
    assert "Nothing was changed" in said
    return said


def test_all_contradictions_are_refused_at_once() -> None:
    given = {
        "nsqd_archive_checksum": "md5:1234",
        "nsqd_msg_timeout_seconds": 30000,
        "nsqd_longest_delivery_seconds": 30001,
        "nsqd_node_id": 7,
        "nsqd_extra_flags": ["--sync-every=2500"],
    }
    said = refusal(f"--extra-vars={json.dumps(given)}")
    assert "64 hexadecimal digits" in said
    assert "below nsqd_max_msg_timeout_seconds" in said
    assert "a pool that may hold one delivery for 30001 s" in said
    assert "nsqd_node_id 7 on svc507 and svc506" in said or "nsqd_node_id 7 on svc506 and svc507" in said
    assert "nsqd_extra_flags with sync-every" in said


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nsqd_archive_checksum=sha256:" + 64 * "0", "wanted sha256:0000"),
        ("nsqd_archive_url=/nowhere/nsq.tar.gz nsqd_archive_checksum=sha256:" + 64 * "1", "Got no file"),
        ("nsqd_listen_address=10.89.78.15", "wanted an address of svc506"),
        ("nsqd_max_msg_size_bytes=1000", "which is in force"),
    ],
    ids=["another checksum", "no archive", "an address of another host", "a smaller largest message"],
)
def test_what_cannot_work_is_refused_before_anything_changes(given: str, told: str) -> None:
    assert told in refusal("--limit=svc506", f"--extra-vars={given}")


def test_a_port_that_something_else_holds_is_refused(spare: Host) -> None:
    spare.check_output("systemd-run --unit=stranger python3 -m http.server --bind 10.89.78.14 4151")
    until(lambda: spare.socket("tcp://10.89.78.14:4151").is_listening)
    try:
        assert "python3" in refusal("--limit=svc507")
    finally:
        spare.check_output("systemctl stop stranger")
