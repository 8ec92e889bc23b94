import sys
import traceback
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


PYTHON_HANDLER = f"""\
python = "jobs.fixity:Check"
interpreter = "{sys.executable}"
options = {{max_hops = 8}}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "worker.toml"
    path.write_text(text)
    return path


def mistakes(tmp_path: Path, text: str) -> str:
    with pytest.raises(settings.ConfigurationError) as caught:
        settings.load_any(write(tmp_path, text))
    return str(caught.value)


def test_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    config = settings.load_any(write(tmp_path, WORKER))
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


def worker(tmp_path: Path, *changes: tuple[str, str]) -> settings.WorkerSettings:
    text = WORKER
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    config = settings.load(write(tmp_path, text), settings.WorkerSettings)
    assert isinstance(config, settings.WorkerSettings)
    return config


def test_a_pool_serves_several_lanes(tmp_path: Path) -> None:
    config = worker(
        tmp_path, ("[pool]", '[lanes.fixity-priority]\nkind = "fixity"\npool = "fixity"\nweight = 16\n[pool]')
    )
    assert {name: lane.weight for name, lane in config.lanes.items()} == {"fixity-check": 1, "fixity-priority": 16}


def test_a_handler_is_a_class_of_python_with_its_options(tmp_path: Path) -> None:
    handler = worker(tmp_path, ('command = ["/bin/true"]', PYTHON_HANDLER)).pool.handler
    assert (handler.python, handler.command) == ("jobs.fixity:Check", None)
    assert handler.options == {"max_hops": 8}
    assert handler.preload is True


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("", "expected either command or python"),
        (f'command = ["/bin/true"]\n{PYTHON_HANDLER}', "expected either command or python"),
        ('python = "jobs.fixity:Check"', "interpreter: python has one, command has none"),
        (f'command = ["/bin/true"]\ninterpreter = "{sys.executable}"', "interpreter: python has one, command has none"),
        ('python = "jobs:Check"\ninterpreter = "/no/such/python"', "there is no program /no/such/python"),
        ('python = "jobs/fixity.py"', "pool.handler.python: String should match pattern"),
    ],
)
def test_a_handler_is_one_of_two(tmp_path: Path, handler: str, said: str) -> None:
    assert said in mistakes(tmp_path, WORKER.replace('command = ["/bin/true"]', handler))


def test_a_pool_without_a_lane_is_refused(tmp_path: Path) -> None:
    text = WORKER.replace('[lanes.fixity-check]\nkind = "fixity"\npool = "fixity"\n', "[lanes]\n")
    assert "lanes: a pool serves at least one lane" in mistakes(tmp_path, text)


@pytest.mark.parametrize(
    "changes",
    [
        [("[pool]", "[pool]\nslots = 9\ntask_timeout_seconds = 5\nmax_attempts = 9")],
        [('pool = "fixity"', 'pool = "fixity"\nweight = 9\nmax_outstanding = 5')],
        [("[lanes.fixity-check]", '[lanes.another]\nkind = "fixity"\npool = "fixity"\n[lanes.fixity-check]')],
        [('key = ["file_id"]', 'key = ["file_id", "copy"]')],
        [("127.0.0.1:4150", "127.0.0.1:4160")],
        [
            ('active = "svc506"', 'active = "svc507"\ndraining = ["svc506"]'),
            (
                "[nsqd.hosts.svc506]",
                '[nsqd.hosts.svc507]\ntcp_address = "h:1"\nhttp_address = "h:2"\n[nsqd.hosts.svc506]',
            ),
        ],
    ],
)
def test_a_running_worker_takes_what_needs_no_restart(tmp_path: Path, changes: list[tuple[str, str]]) -> None:
    new = worker(tmp_path, *changes)
    assert new != worker(tmp_path)
    assert worker(tmp_path).restart_needed_for(new) == []


@pytest.mark.parametrize(
    ("old", "new", "reasons"),
    [
        ('host = "worker1"', 'host = "worker1"\ngeneration = "2"', ["generation"]),
        ('host = "worker1"', 'host = "worker2"', ["host"]),
        ("127.0.0.1:9310", "127.0.0.1:9311", ["state_address"]),
        ("127.0.0.1:9092", "127.0.0.1:9093", ["kafka"]),
        ('["/bin/true"]', '["/bin/true", "now"]', ["pool.handler"]),
        ("[pool]", '[pool]\ndirectory = "/tmp"', ["pool.directory"]),
        ('command = ["/bin/true"]', PYTHON_HANDLER, ["pool.handler"]),
    ],
)
def test_what_needs_a_restart_is_named(tmp_path: Path, old: str, new: str, reasons: list[str]) -> None:
    running = worker(tmp_path)
    assert running.restart_needed_for(worker(tmp_path, (old, new))) == reasons


def test_all_that_needs_a_restart_is_named(tmp_path: Path) -> None:
    new = worker(tmp_path, ('host = "worker1"', 'host = "w"\ngeneration = "2"'), ("/bin/true", "/bin/false"))
    assert worker(tmp_path).restart_needed_for(new) == ["generation", "host", "pool.handler"]


@pytest.mark.parametrize("dsn", ["host=a password=x", "host=a password = 'x'", "postgresql://me:x@a/db"])
def test_a_password_in_the_dsn_is_refused(dsn: str) -> None:
    with pytest.raises(ValueError, match="holds a password"):
        settings.Postgresql(dsn=dsn)


def test_credentials_are_read_from_files_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "postgresql_password").write_text("hush\n")
    (tmp_path / "kafka.json").write_text('{"sasl.password": "hush"}')
    (tmp_path / "intake_tokens.json").write_text('{"fixity-check": ["hush-hush-hush-hush"]}')
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    secrets = settings.credentials()
    assert secrets.postgresql_password == "hush"  # noqa: S105
    assert secrets.kafka == {"sasl.password": "hush"}
    assert secrets.intake_tokens == {"fixity-check": ("hush-hush-hush-hush",)}
    assert "hush" not in repr(secrets)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("kafka.json", "hush"),
        ("kafka.json", '["hush"]'),
        ("intake_tokens.json", '["hush-hush-hush-hush"]'),
        ("intake_tokens.json", '{"fixity-check": "hush-hush-hush-hush"}'),
        ("intake_tokens.json", '{"fixity-check": ["hush-hush-hush"]}'),
        ("intake_tokens.json", '{"fixity-check": ["hush hush hush hush"]}'),
        ("intake_tokens.json", '{"fixity-check": ["hush-hush-hush-hush\\n"]}'),
    ],
)
def test_a_secret_of_another_form_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(settings.ConfigurationError, match=f"{name}: expected a JSON object") as refused:
        settings.credentials()
    assert "hush" not in "".join(traceback.format_exception(refused.value))


def test_only_one_kind_is_of_type_ingest_because_there_is_one_set_of_tables(tmp_path: Path) -> None:
    said = mistakes(tmp_path, WORKER + '[kinds.a]\ntype = "ingest"\n[kinds.b]\ntype = "ingest"\n')
    assert "kinds: a and b are of type ingest" in said


def test_a_kind_of_another_type_or_without_its_key_is_named(tmp_path: Path) -> None:
    said = mistakes(tmp_path, WORKER.replace('key = ["file_id"]', "") + '[kinds.a]\ntype = "movie"\n')
    assert "kinds.fixity.key: Field required" in said
    assert "kinds.a: " in said
    assert "'job', 'ingest'" in said


INTAKE = """
service = "intake"
host = "control1"
state_address = "127.0.0.1:9304"
listen_address = "127.0.0.1:8301"
max_unacknowledged_bytes = 1000
max_body_bytes = 1000
[kafka.properties]
"bootstrap.servers" = "127.0.0.1:9092"
[kinds.fixity]
type = "job"
key = ["file_id"]
[lanes.fixity-check]
kind = "fixity"
pool = "fixity"
"""


def test_one_body_fits_into_what_may_be_under_way(tmp_path: Path) -> None:
    assert isinstance(settings.load_any(write(tmp_path, INTAKE)), settings.IntakeSettings)
    said = mistakes(tmp_path, INTAKE.replace("body_bytes = 1000", "body_bytes = 1001"))
    assert "max_body_bytes: got 1001, expected at most max_unacknowledged_bytes, 1000" in said
