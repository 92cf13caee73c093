"""Laws of tiling: nothing missing, nothing doubled, no seam, and as good as in one piece."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from acq_isl.processing.tiling import BLEND_PX, TilePlan, TileRule, blend, cut, plan_tiles

RULES = st.builds(
    TileRule,
    min_px=st.integers(1, 160),
    halo_px=st.integers(0, 96),
    step_px=st.sampled_from([1, 2, 3, 8, 16, 32]),
)
TILE_PX = st.one_of(st.none(), st.integers(1, 1500))
BORDER_PX = st.integers(0, 100)


def through_tiles(field, network, plan, batch=1):
    """The prediction of ``network`` ((z, h, w) -> (label, h, w)) tile by tile."""
    out = np.zeros((network(cut(field, plan, plan.tiles[:1])[0]).shape[0], *plan.field_shape), np.float32)
    for tiles in plan.batches(batch):
        for one, tile in zip(cut(field, plan, tiles), tiles, strict=True):
            blend(out, network(one), plan, tile)
    return out


def network_with_reach(radius: int, step: int):
    """A stand-in for a U-Net: zero padding at tile edges, pooling by ``step``, receptive field ``radius``."""

    def network(tile):
        x = tile[0].astype(np.float32)
        height, width = x.shape
        pooled = x.reshape(height // step, step, width // step, step).mean(axis=(1, 3))
        blocks = np.repeat(np.repeat(pooled, step, 0), step, 1)
        reach = radius - step
        fine = ndimage.uniform_filter(x - blocks / 2, 2 * reach + 1, mode="constant")
        return np.stack([fine, np.abs(fine) + 1]).astype(np.float32)

    return network


def field_of(shape, planes=1, seed=0):
    return np.random.default_rng(seed).integers(0, 65536, (planes, *shape)).astype(np.uint16)


@given(size=st.integers(1, 4096), rule=RULES, tile_px=TILE_PX, border_px=BORDER_PX)
@settings(max_examples=150, deadline=None)
def test_every_axis_obeys_the_laws(size, rule, tile_px, border_px):
    axis = plan_tiles((size, 1), rule, tile_px=tile_px, border_px=border_px).rows
    total, covered = np.zeros(size), np.zeros(size, bool)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        assert weight.shape == (axis.side,) and weight.dtype == np.float32
        assert weight.min() >= 0 and weight.max() <= 1
        place = np.arange(start, start + axis.side)
        inside = (place >= 0) & (place < size)
        total[place[inside]] += weight[inside]
        covered[place[inside]] = True
    assert covered.all()
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert axis.side % rule.step_px == 0 and axis.side >= rule.min_px
    assert all((start - axis.starts[0]) % rule.step_px == 0 for start in axis.starts)
    assert axis.starts[0] <= -border_px and axis.starts[-1] + axis.side >= size + border_px


@given(size=st.integers(1, 4096), rule=RULES, tile_px=TILE_PX)
@settings(max_examples=150, deadline=None)
def test_nothing_is_taken_from_the_halo_of_an_inner_edge(size, rule, tile_px):
    axis = plan_tiles((1, size), rule, tile_px=tile_px).columns
    halo = rule.halo_px
    for index, weight in enumerate(axis.weights):
        if index > 0:
            assert not weight[:halo].any()
        if index + 1 < len(axis.starts):
            assert not weight[axis.side - halo :].any()
            overlap = axis.starts[index] + axis.side - axis.starts[index + 1]
            assert overlap >= 2 * halo + BLEND_PX


@given(size=st.integers(1, 4096), rule=RULES, tile_px=st.integers(1, 1500))
@settings(max_examples=150, deadline=None)
def test_a_tile_is_never_longer_than_asked_for_unless_it_must(size, rule, tile_px):
    axis = plan_tiles((size, 1), rule, tile_px=tile_px).rows
    shortest = max(rule.min_px, 2 * rule.halo_px + BLEND_PX) + 2 * rule.step_px
    assert axis.side <= max(tile_px, shortest)


@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    rule=st.builds(TileRule, st.integers(1, 40), st.integers(0, 12), st.sampled_from([1, 4, 8])),
    tile_px=st.one_of(st.none(), st.integers(1, 64)),
    border_px=st.integers(0, 20),
    batch=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_cutting_and_blending_alone_change_nothing(shape, rule, tile_px, border_px, batch):
    field = field_of(shape, planes=2)
    plan = plan_tiles(shape, rule, tile_px=tile_px, border_px=border_px)
    back = through_tiles(field, lambda tile: tile.astype(np.float32), plan, batch)
    np.testing.assert_allclose(back, field, rtol=1e-5)


@given(
    shape=st.tuples(st.integers(1, 260), st.integers(1, 260)),
    step=st.sampled_from([2, 4, 8]),
    reach=st.integers(9, 24),
    spare=st.integers(0, 8),
    border_px=st.sampled_from([0, 5, 24]),
    tile_px=st.integers(48, 128),
)
@settings(max_examples=60, deadline=None)
def test_tiled_equals_untiled_where_the_halo_covers_the_receptive_field(
    shape, step, reach, spare, border_px, tile_px
):
    field, network = field_of(shape), network_with_reach(reach, step)
    rule = TileRule(min_px=32, halo_px=reach + spare, step_px=step)
    whole = through_tiles(field, network, plan_tiles(shape, rule, border_px=border_px))
    tiled = through_tiles(field, network, plan_tiles(shape, rule, tile_px=tile_px, border_px=border_px))
    assert np.abs(tiled - whole).max() <= 1e-5 * np.abs(whole).max()


def test_a_halo_shorter_than_the_receptive_field_is_seen_by_that_comparison():
    field, network = field_of((200, 200)), network_with_reach(20, 4)
    rule = TileRule(min_px=32, halo_px=4, step_px=4)
    whole = through_tiles(field, network, plan_tiles((200, 200), rule))
    tiled = through_tiles(field, network, plan_tiles((200, 200), rule, tile_px=64))
    assert np.abs(tiled - whole).max() > 1e-3 * np.abs(whole).max()


def test_where_tiles_disagree_there_is_a_ramp_and_no_seam():
    plan = plan_tiles((1, 400), TileRule(halo_px=10, step_px=4), tile_px=120)
    out = np.zeros((1, 1, 400), np.float32)
    for number, tile in enumerate(plan.tiles):
        blend(out, np.full((1, *plan.tile_shape), number % 2, np.float32), plan, tile)
    assert out.min() == 0 and out.max() == 1
    assert np.abs(np.diff(out[0, 0])).max() <= 1.001 / BLEND_PX


SIZES = [
    # shape, longest tile, tiles along rows and columns, tile shape
    ((1, 1), 512, (1, 1), (128, 128)),
    ((1, 4096), 512, (1, 13), (128, 512)),
    ((256, 256), 512, (1, 1), (256, 256)),
    ((1024, 1024), None, (1, 1), (1024, 1024)),
    ((1024, 704), 512, (3, 2), (480, 464)),
    ((1025, 513), 512, (3, 2), (496, 368)),
    ((2048, 2048), 1280, (2, 2), (1136, 1136)),
    ((2304, 2304), 1280, (2, 2), (1264, 1264)),
    ((4096, 4096), 1280, (4, 4), (1184, 1184)),
    ((300, 300), 16, (6, 6), (224, 224)),
]


@pytest.mark.parametrize(("shape", "tile_px", "counts", "tile_shape"), SIZES)
def test_plans_of_usual_fields(shape, tile_px, counts, tile_shape):
    plan = plan_tiles(shape, TileRule(128, 96, 16), tile_px=tile_px)
    assert (len(plan.rows.starts), len(plan.columns.starts)) == counts
    assert plan.tile_shape == tile_shape
    assert plan.field_shape == shape
    assert len(plan.tiles) == counts[0] * counts[1] == sum(len(tiles) for tiles in plan.batches(3))
    assert max(len(tiles) for tiles in plan.batches(3)) <= 3


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    border_px=st.integers(0, 30),
    min_px=st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_outside_the_field_it_is_reflected(shape, border_px, min_px):
    field = field_of(shape, planes=2)
    plan = plan_tiles(shape, TileRule(min_px, 0, 4), border_px=border_px)
    pads = [
        (-axis.starts[0], axis.side + axis.starts[0] - size)
        for axis, size in zip((plan.rows, plan.columns), shape, strict=True)
    ]
    wanted = np.pad(field, [(0, 0), *pads], mode="reflect")
    np.testing.assert_array_equal(cut(field, plan, plan.tiles)[0], wanted)


def test_a_field_that_is_one_tile_is_not_copied():
    field = field_of((64, 32), planes=3)
    plan = plan_tiles(field.shape[1:], TileRule(16, 8, 16), tile_px=64)
    assert np.shares_memory(cut(field, plan, plan.tiles), field)
    tilted = field.transpose(0, 2, 1)
    turned = plan_tiles(tilted.shape[1:], TileRule(16, 8, 16), tile_px=64)
    assert cut(tilted, turned, turned.tiles).flags.c_contiguous


def test_tile_memory_is_used_again():
    field = field_of((200, 200), planes=2)
    plan = plan_tiles((200, 200), TileRule(16, 8, 16), tile_px=64)
    memory = np.empty((3, 2, *plan.tile_shape), np.uint16)
    for tiles in plan.batches(3):
        into = cut(field, plan, tiles, memory)
        assert np.shares_memory(into, memory) and into.flags.c_contiguous
        np.testing.assert_array_equal(into, cut(field, plan, tiles))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TileRule(min_px=0),
        lambda: TileRule(halo_px=-1),
        lambda: TileRule(step_px=0),
        lambda: plan_tiles((0, 5), TileRule()),
        lambda: plan_tiles((5, 5), TileRule(), border_px=-1),
    ],
)
def test_impossible_tiles_are_refused(wrong):
    with pytest.raises(ValueError, match=r"at least|start at"):
        wrong()


def test_the_plan_is_frozen():
    plan = plan_tiles((10, 10), TileRule())
    assert isinstance(plan, TilePlan)
    with pytest.raises(AttributeError):
        plan.rows = plan.columns  # type: ignore[misc]
