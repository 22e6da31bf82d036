"""No second carries more than its budget, whatever is to be sent and whenever one looks."""

import random

import pytest

from analyzer.live.budget import Budget

PER_S = 2_000_000


@pytest.mark.parametrize("largest", [1000, 100_000, 1_000_000, PER_S])
def test_no_second_has_more_than_its_budget_and_all_of_it_is_used(largest: int) -> None:
    chance = random.Random(largest)
    budget, now, sent = Budget(PER_S), 100.0, []
    for _ in range(3000):
        size = chance.randint(1, largest)
        now += chance.choice((0.0, 1e-4, 0.01))
        while (wait := budget.wait_s(size, now)) > 0:
            # Never later than the next look, and a wait is no longer than a second.
            assert wait <= 1.0
            now += wait
        budget.spend(size, now)
        sent.append((now, size))
    first = total = 0
    for at, size in sent:
        total += size
        while sent[first][0] <= at - 1.0:
            total -= sent[first][1]
            first += 1
        assert total <= PER_S
    if largest >= 100_000:
        assert sum(size for _, size in sent) > 0.5 * PER_S * (sent[-1][0] - sent[0][0])


def test_a_message_larger_than_a_second_s_worth_goes_alone() -> None:
    budget = Budget(PER_S)
    budget.spend(10, 5.0)
    assert budget.wait_s(3 * PER_S, 5.5) == pytest.approx(0.5)
    assert budget.wait_s(3 * PER_S, 6.0) == 0.0


def test_what_is_sent_at_once_is_spread_by_a_pause() -> None:
    budget = Budget(PER_S)
    assert budget.even_in_s(1.0) == 0.0
    budget.spend(400_000, 1.0)
    assert budget.even_in_s(1.0) == pytest.approx(0.2)
    budget.spend(200_000, 1.1)
    assert budget.even_in_s(1.2) == pytest.approx(0.1)
    assert budget.even_in_s(9.0) == 0.0
