"""What a user of the site sees, on the hosts that site.yml deployed."""

import base64
import hashlib
import json
import time
import tomllib
from collections.abc import Iterator

import pytest
import yaml
from conftest import (
    ADDRESSES,
    INVENTORY,
    ROOT,
    WORKERS,
    container,
    enqueue,
    pipe,
    playbook,
    rows,
    status,
    wait_until,
)
from testinfra.host import Host

#: (host, pool)
POOLS = (*((host, pool) for host in WORKERS for pool in ("fixity", "digest")), ("worker1", "ingest"))
WORKER_UNIT = "slowjobs-worker@fixity"
SERVICES = {
    "slowjobs-bridge": ("control1", "bridge.toml"),
    "slowjobs-intake": ("control1", "intake.toml"),
    "slowjobs-persister@requests": ("control1", "persister-requests.toml"),
    "slowjobs-persister@results": ("control1", "persister-results.toml"),
}
UNITS = (
    ("control1", "slowjobs-reenqueue@fixity.service"),
    *((host, unit) for unit, (host, _) in SERVICES.items()),
    *((host, f"slowjobs-worker@{pool}") for host, pool in POOLS),
)

#: tells which of the addresses in its arguments take a connection within two seconds.
PROBE = """
import concurrent.futures, socket, sys
def probe(address):
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
        print(address)
    except OSError:
        pass
with concurrent.futures.ThreadPoolExecutor(len(sys.argv)) as pool:
    list(pool.map(probe, sys.argv[1:]))
"""

#: POSTs standard input to an address with a token (or none), and prints the status and the answer.
POST = """
import sys, urllib.error, urllib.request
headers = {"Content-Type": "application/x-ndjson", **{"Authorization": f"Bearer {token}" for token in sys.argv[2:]}}
request = urllib.request.Request(sys.argv[1], sys.stdin.buffer.read(), headers)
try:
    answer = urllib.request.urlopen(request, timeout=30)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read().decode())
"""

#: writes one message to a topic as any producer could, past the checks of `slowjobs enqueue`.
PRODUCE = """
import sys, confluent_kafka
producer = confluent_kafka.Producer({"bootstrap.servers": sys.argv[1]})
producer.produce(sys.argv[2], sys.stdin.buffer.read())
sys.exit(producer.flush(30))
"""


def results(prefix: str) -> dict[str, str]:
    """Return the statuses of the rows whose file_id begins with the prefix, by file_id."""
    query = (
        f"select key::jsonb ->> 0, status from job_result where kind = 'fixity' and key::jsonb ->> 0 like '{prefix}%'"  # noqa: S608
    )
    return dict(row.split("|") for row in rows(query))


def test_every_service_answers_with_the_configuration_on_its_host(control: Host) -> None:
    releases = [container(host).check_output("sed -n s/^VERSION_ID=//p /etc/os-release") for host in WORKERS]
    assert releases == ['"13"', '"12"']
    said = status(control)
    assert said["errors"] == []
    running = {(service["name"], service["host"]): service["config"] for service in said["services"]}
    running |= {(f"slowjobs-worker@{worker['pool']}", worker["host"]): worker["config"] for worker in said["workers"]}
    files = {(name, host): (host, file) for name, (host, file) in SERVICES.items()}
    files |= {(f"slowjobs-worker@{pool}", host): (host, f"worker-{pool}.toml") for host, pool in POOLS}
    assert running == {
        key: container(host).file(f"/etc/slowjobs/{file}").sha256sum for key, (host, file) in files.items()
    }


def test_check_proves_the_configuration_and_every_connection(control: Host) -> None:
    assert control.run("slowjobs check").rc == 0


def test_setup_finds_nothing_missing(control: Host) -> None:
    assert control.run("slowjobs setup --check").rc == 0


def test_real_requests_end_as_rows(control: Host) -> None:
    run = f"rows{time.time_ns()}"
    # The hosts' own files differ: they are of two releases of Debian.
    for worker in WORKERS:
        container(worker).check_output("mkdir -p /srv/files && for n in $(seq 40); do echo $n > /srv/files/$n; done")
    sums = {n: hashlib.md5(b"%d\n" % n, usedforsecurity=False).hexdigest() for n in range(1, 41)}
    requests: list[dict[str, object]] = [
        {"file_id": f"{run}-{n}", "path": f"/srv/files/{n}", "md5": md5} for n, md5 in sums.items()
    ]
    wanted = {str(request["file_id"]): "match" for request in requests}
    requests.append({"file_id": f"{run}-changed", "path": "/etc/hostname", "md5": "0" * 32})
    requests.append({"file_id": f"{run}-gone", "path": "/nonexistent/file", "md5": "0" * 32})
    wanted |= {f"{run}-changed": "mismatch", f"{run}-gone": "missing"}
    enqueue(requests[::2])
    enqueue(requests[1::2], "fixity-priority")
    wait_until(lambda: results(run) == wanted, "a row for each request", 60)
    wait_until(lambda: all(lane["unfinished"] == 0 for lane in status(control)["lanes"]), "nothing unfinished", 30)


def test_who_has_a_token_sends_requests_over_http(control: Host) -> None:
    # What there is to fetch is a worker's own state port, by a new address each time.
    page = f"http://{ADDRESSES['worker1']}:9312/state?{time.time_ns()}"
    request = {"link_source": "tests", "link_source_id": "1", "ingest_type": "file", "base_url": page}
    url = f"http://{ADDRESSES['control1']}:8301/lanes/ingest/requests"
    token = (INVENTORY.parent / ".generated" / "intake_token").read_text().strip()
    # From a host that is none of those that need Kafka.
    assert pipe("svc507", ["python3", "-c", POST, url], json.dumps(request)).startswith("401 ")
    assert pipe("svc507", ["python3", "-c", POST, url, token[::-1]], json.dumps(request)).startswith("401 ")
    said, answer = pipe("svc507", ["python3", "-c", POST, url, token], json.dumps(request)).split(maxsplit=1)
    assert (said, json.loads(answer)["acknowledged"]) == ("202", 1)
    query = f"select hit, status, terminal_status_code from ingest_file_result where base_url = '{page}'"  # noqa: S608
    wait_until(lambda: rows(query) == ["t|success|200"], "its row", 60)
    assert token not in control.check_output("journalctl --unit slowjobs-intake --no-pager")


def test_a_policy_has_a_timer_and_its_run_sends_what_has_no_result(control: Host) -> None:
    assert "slowjobs-reenqueue@fixity.timer" in control.check_output("systemctl list-timers --no-pager")
    rejected = f"rejected{time.time_ns()}"
    enqueue([{"file_id": rejected}])
    wait_until(lambda: rejected in control.check_output("slowjobs dead list --json"), "the dead letter", 30)
    # Of a lane that still has work nothing is sent.
    wait_until(lambda: all(lane["unfinished"] == 0 for lane in status(control)["lanes"]), "nothing unfinished", 60)
    ran = control.run("systemctl start slowjobs-reenqueue@fixity.service")
    journal = control.check_output("journalctl --unit 'slowjobs-reenqueue@*' --no-pager --output cat")
    assert ran.rc == 0, journal
    query = f"select reenqueue_count from slowjobs_request_position where key like '%{rejected}%'"  # noqa: S608
    assert rows(query) == ["1"], journal


def test_a_request_that_is_none_ends_as_a_dead_letter_with_its_reason(control: Host) -> None:
    mark = f"no JSON {time.time_ns()}"
    python = ["/opt/slowjobs/current/bin/python", "-c", PRODUCE, f"{ADDRESSES['data1']}:9092", "fixity-check"]
    pipe("control1", python, mark)
    encoded = base64.b64encode(mark.encode()).decode()

    def is_listed() -> bool:
        letters = control.check_output("slowjobs dead list --json")
        return encoded in letters and "not-json" in letters

    wait_until(is_listed, "the dead letter", 30)


@pytest.fixture
def pipes() -> Iterator[str]:
    """A path on both workers whose reader waits until it is a file."""
    path = "/srv/slow"
    for worker in WORKERS:
        container(worker).check_output(f"rm -f {path} && mkfifo -m 0644 {path}")
    yield path
    for worker in WORKERS:
        container(worker).check_output(f"rm -f {path}")


def test_requests_of_killed_workers_run_again(control: Host, pipes: str) -> None:
    run = f"killed{time.time_ns()}"
    content = b"a file at last\n"
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    requests: list[dict[str, object]] = [
        {"file_id": f"{run}-{number}", "path": pipes, "md5": md5} for number in range(6)
    ]
    enqueue(requests)
    wait_until(
        lambda: sum(worker["running"] or 0 for worker in status(control)["workers"]) == len(requests), "all run", 30
    )
    for worker in WORKERS:
        container(worker).check_output(f"systemctl kill --kill-whom=main --signal=KILL {WORKER_UNIT}")
        container(worker).check_output(f"rm {pipes}")
        pipe(worker, ["tee", pipes], content.decode())
    # nsqd gives them to others 30 s after it last heard of them.
    wait_until(lambda: results(run) == {str(one["file_id"]): "match" for one in requests}, "a row for each request", 90)
    for worker in WORKERS:
        assert container(worker).service(WORKER_UNIT).is_running


def reachable(source: str, *targets: str) -> set[str]:
    """Return those of the targets (host:port) that the source can connect to."""
    addresses = {f"{ADDRESSES[target.split(':')[0]]}:{target.split(':')[1]}": target for target in targets}
    return {addresses[line] for line in pipe(source, ["python3", "-c", PROBE, *addresses], "").splitlines()}


ALL_PORTS = (
    "data1:5432", "data1:9092", "data1:9093", "svc506:4150", "svc506:4151",
    "control1:8301", "control1:9301", "control1:9302", "control1:9303", "control1:9304", "worker2:9310", "worker2:9311",
)  # fmt: skip


@pytest.mark.parametrize(
    ("source", "open_ports"),
    [
        ("control1", set(ALL_PORTS) - {"data1:9093"}),
        ("worker1", {"data1:9092", "svc506:4150", "control1:8301"}),
        ("svc507", {"control1:8301"}),
    ],
)
def test_ports_are_open_to_those_who_need_them_alone(source: str, open_ports: set[str]) -> None:
    assert reachable(source, *ALL_PORTS) == open_ports


def test_a_spare_is_stopped_and_stays_so() -> None:
    spare = container("svc507").service("nsqd")
    assert (spare.is_running, spare.is_enabled) == (False, False)


def test_secrets_are_for_root_alone(control: Host) -> None:
    folder = control.file("/etc/slowjobs/credentials")
    assert (folder.mode, folder.user) == (0o700, "root")
    assert set(folder.listdir()) == {"postgresql_password", "persister-postgresql_password", "intake-tokens.json"}
    for name in folder.listdir():
        file = control.file(f"{folder.path}/{name}")
        assert (file.mode, file.user) == (0o600, "root")
        secret = f"$(grep -oE '[[:alnum:]]{{20,}}' {file.path})"
        assert control.run(f"grep -rqF --include=*.toml -- {secret} /etc/slowjobs").rc == 1
    for worker in WORKERS:
        assert container(worker).file(folder.path).listdir() == []


def test_a_lane_is_discarded_over_a_socket_that_is_closed_to_other_users(control: Host) -> None:
    said = json.loads(control.check_output("slowjobs empty fixity-check --yes --json"))
    assert ([lane["discarded"] for lane in said["lanes"]], said["errors"]) == ([0], [])
    socket = control.file("/run/slowjobs/bridge.sock")
    assert (socket.mode, socket.user) == (0o700, "slowjobs-bridge")


@pytest.mark.parametrize(("host", "unit"), UNITS)
def test_units_are_hardened(host: str, unit: str) -> None:
    # Of 10, which is an unconfined service; systemd's own are between 2 and 9.
    assert container(host).run(f"systemd-analyze security --threshold=25 --no-pager {unit}").rc == 0


@pytest.mark.parametrize("host", WORKERS)
def test_systemd_waits_longer_than_a_worker_drains(host: str) -> None:
    config = tomllib.loads(container(host).file("/etc/slowjobs/worker-fixity.toml").content_string)
    drain = config["pool"].get("drain_timeout_seconds", config["pool"]["task_timeout_seconds"] + 30)
    drop_in = container(host).file(f"/etc/systemd/system/{WORKER_UNIT}.service.d/pool.conf").content_string
    (stop,) = (int(line.partition("=")[2]) for line in drop_in.splitlines() if line.startswith("TimeoutStopSec="))
    assert stop > drain


def test_a_lane_without_a_pool_is_refused_before_anything_is_changed() -> None:
    refused = playbook(
        "preflight.yml", variables={"slowjobs_lanes": {"fixity-check": {"kind": "fixity", "pool": "nope"}}}
    )
    assert refused.returncode != 0
    assert (
        "slowjobs_lanes.fixity-check.pool: got 'nope', wanted one of slowjobs_pools (digest, fixity, ingest)"
        in refused.stdout
    )
    assert "Nothing was changed" in refused.stdout


def test_the_example_makes_sense_but_is_not_deployed_without_its_secrets() -> None:
    example = ROOT / "inventory" / "example"
    checked = playbook("preflight.yml", variables={}, inventory=example)
    assert checked.returncode == 0, checked.stdout
    refused = playbook("preflight.yml", variables={"preflight_before_deployment": True}, inventory=example)
    assert refused.returncode != 0
    assert (
        "slowjobs_kafka_secret_properties[sasl.password], slowjobs_postgresql_password, "
        "slowjobs_intake_tokens[ingest-priority][0]: got nothing" in " ".join(refused.stdout.split())
    )


def test_another_nsqd_host_is_refused_while_the_bridge_publishes_to_the_old_one() -> None:
    refused = playbook("preflight.yml", variables={"preflight_before_deployment": True, "nsqd_active_host": "svc507"})
    assert refused.returncode != 0
    assert "got svc507, but the bridge publishes to svc506. Nothing was changed." in refused.stdout


def test_a_command_that_does_not_exist_is_refused_before_a_worker_is_restarted() -> None:
    def looks() -> list[tuple[str, str]]:
        return [
            (
                container(worker).check_output(f"systemctl show --property=InvocationID {WORKER_UNIT}"),
                container(worker).file("/etc/slowjobs/worker-fixity.toml").sha256sum,
            )
            for worker in WORKERS
        ]

    pools = yaml.safe_load((INVENTORY.parent / "group_vars" / "all" / "pools.yml").read_text())
    pools["slowjobs_pools"]["fixity"]["handler"]["command"] = ["/usr/bin/no-such-program"]
    before = looks()
    refused = playbook("worker.yml", variables=pools)
    assert refused.returncode != 0
    assert "there is no program '/usr/bin/no-such-program' that can be run on this host" in refused.stdout
    assert looks() == before


def test_an_intake_without_tokens_and_the_timer_of_a_policy_that_left_go_away(control: Host) -> None:
    def deploy(variables: dict[str, object]) -> str:
        done = playbook("intake.yml", "reenqueue.yml", variables=variables)
        assert done.returncode == 0, done.stdout
        return control.check_output("systemctl list-unit-files --no-pager 'slowjobs-intake*' 'slowjobs-reenqueue*'")

    left = deploy({"slowjobs_intake_tokens": {}, "slowjobs_reenqueue_policies": {}})
    assert "slowjobs-intake" not in left
    assert "timer" not in left
    assert not control.file("/etc/slowjobs/credentials/intake-tokens.json").exists
    assert reachable("svc507", "control1:8301") == set()
    assert "slowjobs-reenqueue@fixity.timer" in deploy({})
    assert reachable("svc507", "control1:8301") == {"control1:8301"}
