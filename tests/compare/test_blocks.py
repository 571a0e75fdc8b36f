"""Sites folded into blocks and kinds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.compare.blocks import MOST, Kind, Place, arrange, place


@pytest.mark.parametrize(
    ("name", "where"),
    [
        (
            "bert.encoder.layer.11.attention.self.query",
            Place("bert.encoder.layer", 11, "attention.self.query"),
        ),
        ("layers.3.experts.7.w1", Place("layers", 3, "experts.*.w1")),
        ("0.linear", Place("", 0, "linear")),
        ("classifier", None),
        ("head.0", None),
        ("layer1.conv", None),
        ("", None),
    ],
)
def test_place(name, where):
    assert place(name) == where


def test_kinds_keep_the_models_order_and_missing_blocks_are_zero():
    layout = arrange([("h.0.v", 3), ("h.2.v", 4), ("h.2.a", 5), ("score", 7), ("embed", 9)])
    assert layout.blocks == (0, 2)
    assert layout.inside == (Kind("v", (3, 4)), Kind("a", (0, 5)))
    assert layout.outside == (("embed", 9), ("score", 7))
    assert (layout.total_inside, layout.total_outside) == (12, 16)


def test_experts_add_up():
    layout = arrange([(f"layers.0.experts.{i}.w1", 10) for i in range(8)])
    assert layout.inside == (Kind("experts.*.w1", (80,)),)


def test_several_stacks_are_told_apart():
    layout = arrange([("encoder.block.0.q", 1), ("decoder.block.0.q", 2)])
    assert [kind.name for kind in layout.inside] == ["encoder.block: q", "decoder.block: q"]


def test_nothing():
    layout = arrange([])
    assert (layout.blocks, layout.inside, layout.outside) == ((), (), ())


@given(
    st.lists(
        st.tuples(
            st.sampled_from([f"{stack}{end}" for stack in ("h.0.", "h.1.", "") for end in "abcdef"])
            | st.integers(0, 40).map(lambda i: f"h.2.kind{i}")
            | st.integers(0, 40).map(lambda i: f"outside{i}"),
            st.integers(0, 1000),
        ),
        max_size=120,
    )
)
def test_no_parameter_is_lost_and_no_chart_grows_without_end(sites):
    layout = arrange(sites)
    assert layout.total_inside + layout.total_outside == sum(number for _, number in sites)
    assert len(layout.inside) <= MOST
    assert len(layout.outside) <= MOST
