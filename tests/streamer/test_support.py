"""The rule for programs and data that may be absent."""

import pytest

from tests.support import lz4_literals, require, shared_data


def test_what_is_absent_skips_by_name_unless_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXLS_TEST_REQUIRE", "something,else")
    with pytest.raises(pytest.skip.Exception, match=r"no_such_module is not installed \(package nothing\)"):
        require("no_such_module", "nothing")
    with pytest.raises(pytest.skip.Exception, match="no_such_data is absent"):
        shared_data("no_such_data")
    monkeypatch.setenv("CXLS_TEST_REQUIRE", "no_such_module,no_such_data")
    with pytest.raises(pytest.fail.Exception, match="no_such_module is required"):
        require("no_such_module")
    with pytest.raises(pytest.fail.Exception, match="no_such_data is required"):
        shared_data("no_such_data")


def test_what_is_here_is_let_through() -> None:
    require("numpy")
    require("numpy.linalg")
    require("sh")


@pytest.mark.parametrize("size", [0, 1, 14, 15, 16, 269, 270, 271, 10_000])
def test_literals_are_counted_as_lz4_counts_them(size: int) -> None:
    block = lz4_literals(bytes(size))
    assert len(block) == size + 1 + (0 if size < 15 else 1 + (size - 15) // 255)
