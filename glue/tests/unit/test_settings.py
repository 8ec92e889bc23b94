from pathlib import Path

import pytest

from slowjobs import settings

WORKER = """
service = "worker"
host = "worker1"
state_address = "127.0.0.1:9310"
[kafka.properties]
"bootstrap.servers" = "127.0.0.1:9092"
[nsqd]
active = "svc506"
[nsqd.hosts.svc506]
tcp_address = "127.0.0.1:4150"
http_address = "127.0.0.1:4151"
[kinds.fixity]
type = "job"
key = ["file_id"]
[lanes.fixity-check]
kind = "fixity"
pool = "fixity"
[pool]
name = "fixity"
result_topic = "fixity-results"
[pool.handler]
command = ["/bin/true"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "worker.toml"
    path.write_text(text)
    return path


def mistakes(tmp_path: Path, text: str) -> str:
    with pytest.raises(settings.ConfigurationError) as caught:
        settings.load(write(tmp_path, text))
    return str(caught.value)


def test_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    config = settings.load(write(tmp_path, WORKER))
    assert isinstance(config, settings.WorkerSettings)
    assert config.pool.slots == 1
    assert config.pool.task_timeout_seconds == 300
    assert config.pool.drain_seconds == 330
    assert config.pool.max_attempts == 5
    assert (config.pool.retry.base_seconds, config.pool.retry.cap_seconds) == (5, 600)
    assert config.lanes["fixity-check"].max_outstanding == 1000
    assert config.kafka_topic("fixity-check") == "fixity-check"


def test_all_mistakes_are_named_at_once_each_with_its_place(tmp_path: Path) -> None:
    text = WORKER.replace('"127.0.0.1:4150"', '"4150"').replace(
        'pool = "fixity"', 'pool = "fixity"\nmax_outstanding = 2000'
    )
    said = mistakes(tmp_path, text.replace("[pool]", "[pool]\nslotz = 3\nslots = 0"))
    for place in (
        "nsqd.hosts.svc506.tcp_address: expected HOST:PORT, got '4150'",
        "lanes.fixity-check.max_outstanding:",
        "pool.slotz: Extra inputs are not permitted",
        "pool.slots: Input should be greater than or equal to 1 (got 0)",
    ):
        assert place in said
    assert len(said.splitlines()) == 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('["/bin/true"]', '["no-such-program"]', "there is no program 'no-such-program'"),
        ('["/bin/true"]', '["/etc/passwd"]', "there is no program '/etc/passwd' that can be run"),
        ('active = "svc506"', 'active = "svc999"', "host 'svc999' has no [nsqd.hosts.svc999]"),
        ('kind = "fixity"', 'kind = "fixation"', "lanes.fixity-check: kind 'fixation' is not among the kinds (fixity)"),
        ('pool = "fixity"', 'pool = "other"', "lanes.fixity-check: belongs to pool 'other', this worker's is 'fixity'"),
        ('"bootstrap.servers" =', '"client.id" =', "bootstrap.servers is missing"),
        ("[kinds.fixity]", "[kinds.fixity", "worker.toml: Expected"),
        ('service = "worker"', 'service = "porter"', "porter"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in mistakes(tmp_path, WORKER.replace(old, new))


@pytest.mark.parametrize("dsn", ["host=a password=x", "host=a password = 'x'", "postgresql://me:x@a/db"])
def test_a_password_in_the_dsn_is_refused(dsn: str) -> None:
    with pytest.raises(ValueError, match="holds a password"):
        settings.Postgresql(dsn=dsn)


def test_credentials_are_read_from_files_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "postgresql_password").write_text("hush\n")
    (tmp_path / "kafka.json").write_text('{"sasl.password": "hush"}')
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    secrets = settings.credentials()
    assert secrets.postgresql_password == "hush"  # noqa: S105
    assert secrets.kafka == {"sasl.password": "hush"}
    assert "hush" not in repr(secrets)
