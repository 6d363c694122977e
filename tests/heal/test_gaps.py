"""Where networks go."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from streamliner.errors import RemovalError
from streamliner.heal.gaps import find_gaps


@given(st.sets(st.integers(0, 11), min_size=1, max_size=11), st.integers(1, 3))
def test_gaps_cover_what_is_removed_and_places_stay(removed, depth):
    removed = tuple(sorted(removed))
    try:
        gaps = find_gaps(removed, 12, depth)
    except RemovalError:
        return
    inside = [block for gap in gaps for block in range(gap.start, gap.stop)]
    places = [block for gap in gaps for block in gap.places]
    assert len(set(inside)) == len(inside)
    assert sorted(set(inside) - set(places)) == list(removed)
    assert all(len(gap.places) == depth for gap in gaps)
    assert not set(places) & set(removed)


def test_gaps_of_the_paper():
    """Blocks l to l+n become one that starts from block l, so n are gone."""
    (gap,) = find_gaps(tuple(range(4, 12)), 20)
    assert (gap.start, gap.stop, gap.places) == (3, 12, (3,))
    assert str(gap).startswith("9 blocks become 1: 3, 4, ")
    assert [gap.places for gap in find_gaps((0, 5), 12)] == [(1,), (4,)]
    with pytest.raises(RemovalError, match="too few"):
        find_gaps((3, 5), 12, 2)
