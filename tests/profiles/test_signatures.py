"""Names of signatures."""

import pytest

from gemma_edge.profiles.signatures import Call, calls


def test_each_call_has_a_name_that_says_all_of_it() -> None:
    found = list(calls((16, 128), (1024, 4096)))
    assert [call.name for call in found] == [
        "decode", "prefill_16", "prefill_128",
        "until_1024_decode", "until_1024_prefill_128", "until_4096_decode", "until_4096_prefill_128",
    ]  # fmt: skip
    assert [Call.of_name(call.name) for call in found] == found


def test_verifications_are_there_for_the_whole_context_and_each_span() -> None:
    found = list(calls((16, 128), (1024,), (4, 8)))
    assert [call.name for call in found] == [
        "decode", "prefill_16", "prefill_128", "verify_4", "verify_8",
        "until_1024_decode", "until_1024_prefill_128", "until_1024_verify_4", "until_1024_verify_8",
    ]  # fmt: skip
    assert [Call.of_name(call.name) for call in found] == found
    assert [call.name for call in found if call.is_verify] == [call.name for call in found if "verify" in call.name]
    assert [call.name for call in found if call.is_decode] == ["decode", "until_1024_decode"]


def test_batches_are_there_for_the_whole_context_and_each_span() -> None:
    found = list(calls((16,), (1024,), (4,), (2, 4)))
    assert [call.name for call in found] == [
        "decode", "prefill_16", "verify_4", "decode_2", "decode_4",
        "until_1024_decode", "until_1024_prefill_16", "until_1024_verify_4", "until_1024_decode_2",
        "until_1024_decode_4",
    ]  # fmt: skip
    assert [Call.of_name(call.name) for call in found] == found
    batches = [call for call in found if call.is_batch]
    assert [call.rows for call in batches] == [2, 4, 2, 4]
    assert not any(call.is_decode or call.is_verify for call in batches)
    assert batches[-1].takes(1024)  # each row is the only one of its conversation


def test_every_row_of_a_verification_lies_in_its_span() -> None:
    span, whole = Call(4, True, 64), Call(4, True)
    assert (span.takes(61), span.takes(62), whole.takes(10**6)) == (True, False, True)


def test_litert_lm_sees_the_whole_context_only() -> None:
    """It takes every signature that begins with "prefill" for one, and of each number of rows only one."""
    assert [call.name for call in calls((16,), (64,)) if call.name.startswith("prefill")] == ["prefill_16"]


@pytest.mark.parametrize(
    "name",
    ["", "prefill", "prefill_", "prefill_0", "prefill_-1", "decode_1", "decode_04", "until_decode", "until_0_decode",
     "xdecode", "until_64_prefill", "decode ", "prefill_9999999999", "verify", "verify_1", "verify_04"],
)  # fmt: skip
def test_other_names(name: str) -> None:
    assert Call.of_name(name) is None


def test_a_span_takes_positions_up_to_its_end() -> None:
    span, whole = Call(1, True, 64), Call(1, True)
    assert (span.takes(0), span.takes(64), span.takes(65), whole.takes(10**6)) == (True, True, False, True)
    assert span.whole == whole
    assert whole.reach > span.reach == 64
