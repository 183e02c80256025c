"""Sample ids come back from a message as they were given, whatever they hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ava_pipeline.contract.events import MAX_NAMED_SAMPLES, Event, event_columns, name_samples, samples_in

BEHIND = ("", " And 3 more of this kind, up to batch 9.")


def in_events(message: str) -> str:
    """The message as it stands in events.csv."""
    event = Event(event="spike", severity="warning", message=message, batch_idx=5, batch_idx_end=5, epoch=0)
    return str(event_columns([event])["message"][0])


@pytest.mark.parametrize("behind", BEHIND)
@given(ids=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=30))
def test_ids_come_back(behind: str, ids: list[str]) -> None:
    """Commas, quotes, white space of every kind, and what looks like the end of the list."""
    found = samples_in(in_events(name_samples("It spiked.", 5, ids)) + behind)
    assert found == tuple(ids[:MAX_NAMED_SAMPLES])


@pytest.mark.parametrize(
    "ids",
    [
        [("set, a", 80, 0), ("set, a", 80, 1)],
        [953_000, 953_001],
        ["a.jpg", "b and 4 more.", "  two  spaces", 'a "quoted" one', "back\\slash", "a.", "\u2003", ""],
    ],
)
def test_ids_that_are_hard_to_separate_come_back(ids: list[object]) -> None:
    """As texts."""
    assert samples_in(in_events(name_samples("It spiked.", 5, ids))) == tuple(map(str, ids))


def test_file_names_are_named_as_they_are() -> None:
    """A person can read them; from the 21st on they are only counted."""
    message = name_samples("It spiked.", 5, [f"{number}.jpg" for number in range(22)])
    assert message.startswith("It spiked. Samples of batch 5: 0.jpg, 1.jpg, 2.jpg, ")
    assert message.endswith("19.jpg and 2 more.")


def test_messages_of_older_versions_are_read() -> None:
    """Those did not quote ids; and a message may name no samples."""
    assert samples_in("It spiked. Samples of batch 5: my image.jpg, b.jpg and 4 more.") == ("my image.jpg", "b.jpg")
    assert samples_in("It spiked.") == ()
