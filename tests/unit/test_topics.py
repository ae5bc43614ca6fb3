import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busline.errors import ConfigurationError
from busline.topics import MAX_TOPIC_BYTES, check_pattern, check_topic, is_pattern, matches

WORDS = st.sampled_from(["a", "b", "ab", "x-1", "ü"])
TOPICS = st.lists(WORDS, min_size=1, max_size=5)
PATTERNS = st.lists(st.one_of(WORDS, st.sampled_from(["*", "#"])), min_size=1, max_size=5)


def by_definition(pattern: list[str], topic: list[str]) -> bool:
    """Word by word, as the docstring of the module says it."""
    if not pattern:
        return not topic
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return any(by_definition(rest, topic[skipped:]) for skipped in range(len(topic) + 1))
    return bool(topic) and first in ("*", topic[0]) and by_definition(rest, topic[1:])


@settings(derandomize=True, max_examples=500)
@given(PATTERNS, TOPICS)
def test_a_pattern_matches_as_defined(pattern: list[str], topic: list[str]) -> None:
    assert matches(".".join(pattern), ".".join(topic)) == by_definition(pattern, topic)


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("user.*", "user.made", True),
        ("user.*", "user", False),
        ("user.*", "user.made.twice", False),
        ("user.#", "user", True),
        ("user.#", "user.made.twice", True),
        ("user.#", "username", False),
        ("#", "anything.at.all", True),
        ("#.made", "made", True),
        ("*", "one", True),
        ("*", "one.two", False),
        ("a.#.b", "a.b", True),
        ("a+.*", "aa.b", False),
        ("a.b", "a.b", True),
        ("a.b", "axb", False),
    ],
)
def test_a_star_is_one_word_and_a_hash_any_number(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) is expected


@pytest.mark.parametrize("topic", ["orders", "orders.create", "ünï.☃", "with space.and-dash", "a" * MAX_TOPIC_BYTES])
def test_a_topic_is_dotted_words(topic: str) -> None:
    assert check_topic(topic) == topic


@pytest.mark.parametrize("topic", ["", ".", "a.", ".a", "a..b", "a.*", "#", "a*b", "ü" * 128])
def test_what_no_broker_could_carry_is_no_topic(topic: str) -> None:
    with pytest.raises(ConfigurationError):
        check_topic(topic)


@pytest.mark.parametrize("pattern", ["#", "*", "a", "a.*.b.#", "#.#"])
def test_wildcards_stand_for_whole_words(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize("pattern", ["", "a*", "a.#b", "**", "a..*", "*.", "a" * (MAX_TOPIC_BYTES + 1)])
def test_a_wildcard_inside_a_word_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError):
        check_pattern(pattern)


def test_a_topic_is_not_a_pattern() -> None:
    assert not is_pattern("user.made")
    assert is_pattern("user.*")
    assert is_pattern("user.#")
