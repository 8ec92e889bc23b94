import gzip
import io
import random

import pytest

from slowjobs import lines


def read(content: bytes, max_bytes: int = 1000, found: list[bytes] | None = None) -> list[bytes]:
    """Return the lines, in ``found`` as far as they came."""
    found = [] if found is None else found
    for some in lines.read(io.BufferedReader(io.BytesIO(content)), max_bytes):
        found += some
    return found


def numbered(count: int) -> list[bytes]:
    return [b"line %d" % number for number in range(count)]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_the_last_line_needs_no_newline(end: bytes) -> None:
    found = read(b"one\n\ntwo" + end)
    assert found == [b"one", b"", b"two"]


def test_gzip_is_recognised_whatever_the_file_is_called_and_in_many_members() -> None:
    content = b"\n".join(numbered(50_000))
    members = gzip.compress(content[:100_000]) + gzip.compress(b"") + gzip.compress(content[100_000:])
    assert read(members) == read(content) == numbered(50_000)


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert read(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo") == [b"one", b"\xef\xbb\xbftwo"]


def test_a_line_without_end_takes_no_memory_and_the_next_is_whole() -> None:
    [first, second, third] = read(b"short\n" + b"x" * 20_000_000 + b"\nnext", 1000)
    assert (first, third) == (b"short", b"next")
    assert 1000 < len(second) < 1_000_000


@pytest.mark.parametrize("cut", [1, 5, 10_000])
def test_all_lines_before_a_cut_in_gzip_data_are_there(cut: int) -> None:
    draw = random.Random(1)
    words = [b"%x" % draw.getrandbits(400) for _ in range(5000)]
    found: list[bytes] = []
    with pytest.raises(lines.DamagedError, match="ends in the middle"):
        read(gzip.compress(b"\n".join(words))[:-cut], found=found)
    assert len(found) > 4500
    assert found == words[: len(found)]


def test_what_follows_gzip_data_and_is_none_is_an_error() -> None:
    with pytest.raises(lines.DamagedError, match="damaged"):
        read(gzip.compress(b"one\n") + b"two\n")
