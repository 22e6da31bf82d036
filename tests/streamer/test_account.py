"""The account and its identity."""

from streamer.account import DROP_REASONS, MISSING_PLACES, Account


def test_every_reason_and_place_is_there_from_the_start() -> None:
    account = Account()
    assert tuple(account.dropped) == DROP_REASONS
    assert tuple(account.missing) == MISSING_PLACES
    assert account.identity() == "received 0 = processed 0 + dropped 0 + undecodable 0"


def test_the_identity_prints_what_is_still_in_flight() -> None:
    account = Account(received=9)
    account.processed["hit"] += 2
    account.processed["miss"] += 1
    account.drop("queue_full", 2)
    account.drop("duplicate")
    account.undecodable["bad_block"] = 1
    assert account.in_flight == 2
    assert account.identity() == "received 9 = processed 3 + dropped 3 + undecodable 1 + in flight 2"


def test_accepted_leaves_out_what_was_refused_but_not_what_was_lost_after() -> None:
    account = Account(received=100)
    for n, reason in enumerate(DROP_REASONS):
        account.drop(reason, 10**n)
    account.received = 10 ** len(DROP_REASONS)
    refused = sum(account.dropped[reason] for reason in ("duplicate", "stale_series", "out_of_range"))
    assert account.accepted == account.received - refused


def test_refused_messages_are_counted_by_reason() -> None:
    account = Account()
    for reason in ("malformed", "too_large", "malformed"):
        account.refuse_message(reason)
    assert account.invalid == {"malformed": 2, "too_large": 1}
