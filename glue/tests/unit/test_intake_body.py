import json

import hypothesis
import pytest
from hypothesis import strategies

from slowjobs import kinds, settings
from slowjobs.intake import body

KIND = settings.JobKind(type="job", key=("file_id",))

#: of all sorts, and some of them requests.
LINES = strategies.one_of(
    strategies.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")),
    strategies.integers().map(lambda number: json.dumps({"file_id": number}).encode()),
    strategies.sampled_from(
        [b"", b" ", b"\r", b'{"file_id": true}', b"[" * 200, b"\x0b{}", b'{"file_id": "\xed\xa0"}']
    ),
)


def parse(content: bytes, *, is_lines: bool = True) -> list[body.Message]:
    return body.parse(content, is_lines=is_lines, topic="topic", kind=KIND, max_message_bytes=1000)


def mistakes(content: bytes, *, is_lines: bool = True) -> list[tuple[int, str]]:
    with pytest.raises(body.RefusedError) as refused:
        parse(content, is_lines=is_lines)
    assert refused.value.count == len(refused.value.mistakes)
    return [(mistake.line, mistake.reason) for mistake in refused.value.mistakes]


def test_each_line_is_a_request_as_it_came_with_its_key() -> None:
    assert parse(b'{"file_id":  1}\n\n \r\n{"file_id":"a"}\r\n') == [
        body.Message(b"[1]", b'{"file_id":  1}'),
        body.Message(b'["a"]', b'{"file_id":"a"}'),
    ]


def test_one_object_may_span_lines_where_it_is_said_to_be_one() -> None:
    content = b'\n{\n"file_id": 1\n}\n'
    assert parse(content, is_lines=False) == [body.Message(b"[1]", content.strip())]
    assert [line for line, _ in mistakes(content)] == [2, 3, 4]
    assert mistakes(b'{"file_id": 1}\n{"file_id": 2}', is_lines=False) == [(1, "not-json")]


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n"])
@pytest.mark.parametrize("is_lines", [True, False])
def test_an_empty_body_is_a_mistake(content: bytes, is_lines: bool) -> None:
    assert mistakes(content, is_lines=is_lines) == [(1, "not-json")]


def test_of_very_many_mistakes_the_first_are_told_and_all_are_counted() -> None:
    with pytest.raises(body.RefusedError) as refused:
        parse(b"x\n" * 5000)
    assert refused.value.count == 5000
    assert [mistake.line for mistake in refused.value.mistakes] == list(range(1, body.MAX_MISTAKES + 1))


@hypothesis.given(strategies.lists(LINES, max_size=8))
def test_all_lines_are_requests_or_each_that_is_none_is_named(lines: list[bytes]) -> None:
    bad, good = [], []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                good.append(kinds.parse(line.strip(), KIND).raw)
        except kinds.RejectedError as error:
            bad.append((number, error.reason))
    if bad or not good:
        assert mistakes(b"\n".join(lines)) == (bad or [(1, "not-json")])
    else:
        assert [message.value for message in parse(b"\n".join(lines))] == good
