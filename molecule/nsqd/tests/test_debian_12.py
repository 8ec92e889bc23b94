"""The same role on the Debian release before: the spare, while it is the active host."""

import json
from collections.abc import Iterator

import pytest
from conftest import SPARE_ADDRESS, Nsqd, play, until
from test_nsqd import MOST_EXPOSURE, exposure
from testinfra.host import Host


@pytest.fixture
def started(spare: Host) -> Iterator[Nsqd]:
    given = {"nsqd_active_host": "svc507", "preflight_accept_other_nsqd_host": True}
    done = play("--limit=svc507", "--tags=nsqd_configure", f"--extra-vars={json.dumps(given)}")
    assert done.returncode == 0, done.stdout
    yield Nsqd(SPARE_ADDRESS)
    spare.check_output("systemctl disable --now nsqd")


def test_nsqd_runs_hardened_on_debian_12_and_survives_a_kill(spare: Host, started: Nsqd) -> None:
    assert 'VERSION_ID="12"' in spare.file("/etc/os-release").content_string
    assert exposure(spare, "nsqd.service") <= MOST_EXPOSURE
    assert spare.run("systemd-analyze verify nsqd.service slowjobs-firewall.service").stderr == ""
    started.make("kept")
    started.publish("kept", 10)
    before = started.stats()["start_time"]
    spare.check_output("systemctl kill --signal=SIGKILL nsqd")
    until(lambda: started.answers() and started.stats()["start_time"] > before)
    assert started.channel("kept")["depth"] == 10
    started.ask("/topic/delete?topic=kept", "POST")
