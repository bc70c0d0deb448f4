"""Caches, rings, masks and rotation in LiteRT against graph/reference.py, which has none of the first three."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

from gemma_edge.converter.graph import draft, reference
from gemma_edge.converter.graph.draft_ops import Past
from gemma_edge.converter.graph.ops import Graph, Rope
from gemma_edge.converter.plan.cache_layout import CacheLayout
from tests.converter.litert.tflite_runs import Session, fill

E, WINDOW, CONTEXT = 32, 16, 192
PREFILLS = (4, 8, 32)
TOLERANCE = 2e-5  # of outputs around 1: float32 in two orders of summation

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One attention layer over given q, k, v, as a signature of every length."""

    heads: int = 4
    kv_heads: int = 2
    window: int | None = WINDOW
    rope: Rope | None = field(default_factory=lambda: Rope(10_000.0))
    past: int | None = None

    def graph(self, name: str, tokens: int) -> Graph:
        g = Graph(name, tokens, {})
        g.past = self.past
        q = g.input("q", (1, tokens, self.heads, E))
        k, v = (g.input(name, (1, tokens, self.kv_heads, E)) for name in "kv")
        if self.rope is not None:
            q, k = g.rotate(q, self.rope), g.rotate(k, self.rope)
        g.output("y", g.attention(q, g.kv_cache(0, k, v, self.window)))
        return g

    def session(self, layout: CacheLayout, lengths: Sequence[int] = (1, *PREFILLS)) -> Session:
        return Session.of(fill([self.graph(f"run_{n}", n) for n in lengths], {}, {}, layout).content)

    def rows(self, generator: np.random.Generator, tokens: int) -> dict[str, Floats]:
        """Scores of a standard deviation of 2: some rows look at few others, most at many."""
        shapes = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        rows = {name: generator.standard_normal((1, tokens, heads, E), np.float32) for name, heads in shapes.items()}
        rows["q"] *= np.float32(2 * E**-0.5)
        return rows


# (length of the signature, rows that are real), 171 of 192 positions. Rings of 48 slots wrap three times, in the middle
# of chunks, too.
CHUNKS = (
    (8, 5), (1, 1), (32, 32), (32, 20), (1, 1), (1, 1), (4, 4), (32, 31), (8, 8), (4, 1), (32, 32), (1, 1), (8, 1),
    (32, 32), (1, 1),
)  # fmt: skip


def worst_difference(layer: Layer, layout: CacheLayout, chunks: Sequence[tuple[int, int]] = CHUNKS) -> float:
    """Largest |LiteRT - reference| over all real rows. What stands in padding rows must not matter."""
    generator = np.random.default_rng(3)
    session = layer.session(layout)
    past: reference.Past = {}
    start, worst = 0, 0.0
    for length, real in chunks:
        rows = layer.rows(generator, real)
        expected = reference.run(layer.graph("reference", real), {}, rows, past)["y"]
        garbage = {name: 50 * generator.standard_normal(row.shape[2:], np.float32) for name, row in rows.items()}
        padded = {
            name: np.concatenate([row, np.broadcast_to(garbage[name], (1, length - real, *row.shape[2:]))], 1)
            for name, row in rows.items()
        }
        positions = np.full(length, -(10**6), np.int32)  # only the first entry counts
        positions[0] = start
        found = session.run(f"run_{length}", padded | {"input_pos": positions})["y"][:, :real]
        assert np.isfinite(found).all()
        worst = max(worst, float(np.abs(found - expected).max()))
        start += real
    return worst


def layout_of(rings: bool = True, half: bool = False) -> CacheLayout:
    return CacheLayout(CONTEXT, PREFILLS[-1], half=half, rings=rings)


# ---------------------------------------------------------------- the layout


def test_slots() -> None:
    layout = CacheLayout(context_tokens=4096, longest_prefill_tokens=128)
    assert (layout.slots(None), layout.slots(512)) == (4096, 640)
    assert (layout.is_ring(None), layout.is_ring(512)) == (False, True)
    assert (layout.slots(3967), layout.is_ring(3967)) == (4095, True)
    assert (layout.slots(3968), layout.is_ring(3968)) == (4096, False)  # no shorter than the context: no ring


def test_without_rings_every_layer_holds_the_context() -> None:
    layout = CacheLayout(4096, 128, rings=False)
    assert (layout.slots(512), layout.is_ring(512)) == (4096, False)


@pytest.mark.parametrize(("half", "value_bytes"), [(False, 4), (True, 2)])
@pytest.mark.parametrize("window", [None, WINDOW])
def test_nbytes_is_what_the_signatures_hold(half: bool, value_bytes: int, window: int | None) -> None:
    layer, layout = Layer(window=window), layout_of(half=half)
    session = layer.session(layout, (1,))
    session.run("run_1", layer.rows(np.random.default_rng(0), 1) | {"input_pos": np.zeros(1, np.int32)})
    assert {cache.dtype.itemsize for cache in session.caches.values()} == {value_bytes}
    assert sum(cache.nbytes for cache in session.caches.values()) == layout.nbytes(2, E, window)


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (4, 2), (2, 2)])
@pytest.mark.parametrize(
    ("window", "rings"), [(None, True), (WINDOW, True), (WINDOW, False), (1, True), (47, True), (160, True)]
)
def test_attention_equals_the_reference(heads: int, kv_heads: int, window: int | None, rings: bool) -> None:
    layout = layout_of(rings)
    assert layout.is_ring(window) == (rings and window in (WINDOW, 1, 47))
    assert worst_difference(Layer(heads, kv_heads, window), layout) < TOLERANCE


def test_a_window_that_is_off_by_one_would_show() -> None:
    """The tolerance above is not so wide that it hides what it is there to find."""
    layer, other = Layer(), Layer(window=WINDOW + 1)
    generator = np.random.default_rng(3)
    rows = [layer.rows(generator, 1) for _ in range(40)]
    pasts: tuple[reference.Past, reference.Past] = ({}, {})
    for row in rows:
        a, b = (reference.run(x.graph("g", 1), {}, row, p)["y"] for x, p in zip((layer, other), pasts, strict=True))
    assert np.abs(a - b).max() > 1000 * TOLERANCE


@pytest.mark.parametrize("rings", [True, False])
@pytest.mark.parametrize("window", [None, WINDOW])
def test_float16_caches_cost_rounding_only(window: int | None, rings: bool) -> None:
    """Rounding to 11 bits moves a value by 2^-11 of itself at most. Of values and scores both up to about 5 in size,
    the outputs, weighted means, move by about 5 * 2^-11 * 2 = 5e-3 at worst, and by more than float32 does."""
    assert 10 * TOLERANCE < worst_difference(Layer(window=window), layout_of(rings, half=True)) < 5e-3


def test_the_last_position_of_the_context() -> None:
    chunks = [(32, 32)] * 5 + [(8, 8)] * 3 + [(1, 1)] * 8
    assert sum(real for _, real in chunks) == CONTEXT
    for window in (None, WINDOW):
        assert worst_difference(Layer(window=window), layout_of(), chunks) < TOLERANCE


# ---------------------------------------------------------------- spans


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("start", [46, 94, 190])  # of rings of 48 slots, twice the end, and that of the context
def test_a_verification_across_an_end_gives_what_steps_give(window: int | None, start: int, half: bool) -> None:
    layer, generator = Layer(window=window), np.random.default_rng(5)
    verify = layer.graph("verify", 4)
    verify.is_steps = True
    graphs = [verify, *(layer.graph(f"run_{n}", n) for n in (1, 32))]
    session = Session.of(fill(graphs, {}, {}, layout_of(half=half)).content)
    for position in range(0, start, 32):
        session.run("run_32", layer.rows(generator, 32) | {"input_pos": np.full(32, position, np.int32)})
    rows, before = layer.rows(generator, 4), {name: cache.copy() for name, cache in session.caches.items()}
    found = session.run("verify", rows | {"input_pos": np.arange(start, start + 4, dtype=np.int32)})["y"]
    verified = session.caches
    session.caches = before
    steps = min(4, CONTEXT - start)
    for row in range(steps):
        one = {name: values[:, row : row + 1] for name, values in rows.items()}
        step = session.run("run_1", one | {"input_pos": np.array([start + row], np.int32)})["y"]
        assert np.array_equal(found[:, row : row + 1], step)
    if window is None or steps == 4:  # else a ring holds what would stand behind the end as well
        assert all(np.array_equal(cache, session.caches[name]) for name, cache in verified.items())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("start", [3, 17, 18, 100])
def test_a_drafter_reads_what_the_decoder_wrote(window: int | None, start: int, half: bool) -> None:
    layer, generator, layout = Layer(window=window), np.random.default_rng(6), layout_of(half=half)
    g = Graph("draft", 1, {})
    q = g.rotate(g.input("q", (1, 1, layer.heads, E)), Rope(10_000.0))
    g.output("y", draft.past_attention(g, q, Past(0, layer.kv_heads, E, window)))
    decoder, drafter = layer.session(layout), Session.of(fill([g], {}, {}, layout).content)
    past: reference.Past = {}
    for position in range(start):
        row = layer.rows(generator, 1)
        reference.run(layer.graph("reference", 1), {}, row, past)
        decoder.run("run_1", row | {"input_pos": np.array([position], np.int32)})
    query = {"q": layer.rows(generator, 1)["q"]}
    drafter.caches = dict(decoder.caches)
    found = drafter.run("draft", query | {"input_pos": np.array([start], np.int32)})["y"]
    expected = reference.run(g, {}, query, past)["y"]
    assert np.abs(found - expected).max() < (2e-3 if half else TOLERANCE)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("window", "rings"), [(None, True), (WINDOW, True), (WINDOW, False)])
def test_a_span_gives_what_the_whole_context_gives(window: int | None, rings: bool, half: bool) -> None:
    """Up to its last position, 64, and over the same caches; what a run may then write reaches beyond."""
    whole, span = Layer(window=window), Layer(window=window, past=64)
    layout, lengths = layout_of(rings, half), (1, *PREFILLS)
    assert layout.read_slots(window, 64) == (layout.slots(window) if layout.is_ring(window) else 64)
    graphs = [layer.graph(f"{layer.past}_{n}", n) for layer in (whole, span) for n in lengths]
    sessions = [Session.of(fill(graphs, {}, {}, layout).content) for _ in range(2)]
    generator = np.random.default_rng(9)
    position = 0
    for turn, length in enumerate((8, 1, 32, 4, 8, 1, 4, 4, 1, 1, 32, 8)):
        rows = whole.rows(generator, length) | {"input_pos": np.arange(position, position + length, dtype=np.int32)}
        within = position <= 64 and turn % 4 != 3  # the others in between, on the same caches
        expected = sessions[0].run(f"None_{length}", rows)["y"]
        found = sessions[1].run(f"{64 if within else None}_{length}", rows)["y"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        position += length
    assert position > 64 + 32


# ---------------------------------------------------------------- far positions


@pytest.mark.parametrize("position", [3_990, 31_990])
@pytest.mark.parametrize("window", [None, 512])
def test_masks_and_rings_far_into_a_context(position: int, window: int | None) -> None:
    """From a cache that holds `position` random rows. Without RoPE: float32 counts positions exactly to 2^24."""
    layer = Layer(heads=2, kv_heads=1, window=window, rope=None)
    layout = CacheLayout(32_768, 8)
    session = layer.session(layout, (1, 8))
    generator = np.random.default_rng(5)
    before = layer.rows(generator, position)
    past: reference.Past = {0: (before["k"][0], before["v"][0])}
    slots = layout.slots(window)
    assert layout.is_ring(window) == (window is not None)
    held = np.arange(max(0, position - slots), position)  # the newest rows, each in its slot
    keys, values = np.zeros((1, 1, slots, E), np.float32), np.zeros((1, 1, E, slots), np.float32)
    keys[0, 0, held % slots] = before["k"][0, held, 0]
    values[0, 0, :, held % slots] = before["v"][0, held, 0]
    session.caches = {"kv_cache_k_0": keys, "kv_cache_v_0": values}
    for length in (8, 1, 8, 1):
        rows = layer.rows(generator, length)
        expected = reference.run(layer.graph("reference", length), {}, rows, past)["y"]
        positions = np.arange(position, position + length, dtype=np.int32)
        found = session.run(f"run_{length}", rows | {"input_pos": positions})["y"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        position += length


# ---------------------------------------------------------------- rotation

HEAD_SIZE = 256  # Gemma's


def rotation_angles(rope: Rope, positions: NDArray[np.int32]) -> tuple[Floats, Floats]:
    """cos and sin as LiteRT computes them, [positions, HEAD_SIZE / 2]: what rotating (1 .. 1, 0 .. 0) gives."""
    tokens = len(positions)
    g = Graph("rotate", tokens, {})
    g.output("y", g.rotate(g.input("x", (1, tokens, 1, HEAD_SIZE)), rope))
    session = Session.of(fill([g], {}, {}, CacheLayout(1 << 15, tokens)).content)
    x = np.zeros((1, tokens, 1, HEAD_SIZE), np.float32)
    x[..., : HEAD_SIZE // 2] = 1
    y = session.run("rotate", {"x": x, "input_pos": positions})["y"][0, :, 0]
    return y[:, : HEAD_SIZE // 2], y[:, HEAD_SIZE // 2 :]


@pytest.mark.parametrize("start", [0, 3_900, 32_640])
@pytest.mark.parametrize("rope", [Rope(10_000.0), Rope(1_000_000.0), Rope(1_000_000.0, 8.0)])
def test_cos_and_sin_of_large_angles(rope: Rope, start: int) -> None:
    """XNNPACK reduces large angles without loss: 3.0e-7 off at worst at 32k, 2.6e-7 near 0; half a unit in the last
    place of 1 is 6e-8."""
    positions = np.arange(start, start + 128, dtype=np.int32)
    angle = (positions[:, None].astype(np.float32) * rope.inverse_frequencies(HEAD_SIZE)).astype(np.float64)
    cos, sin = rotation_angles(rope, positions)
    np.testing.assert_allclose(cos, np.cos(angle), rtol=0, atol=4e-7)
    np.testing.assert_allclose(sin, np.sin(angle), rtol=0, atol=4e-7)


@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention"])
def test_angles_are_transformers_own(kind: str) -> None:
    """At 32k an angle's rounding to float32 is 2e-3 rad, so only the same rounding steps give the same angles.

    Few inverse frequencies are one unit in the last place off (torch's power is not always correctly rounded), and
    only small ones: 1e-6 rad at this distance.
    """
    config = transformers.Gemma3TextConfig(
        head_dim=HEAD_SIZE,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
        },
    )
    parameters = config.rope_parameters[kind]
    positions = np.arange(32_640, 32_768, dtype=np.int32)
    expected_cos, expected_sin = Gemma3RotaryEmbedding(config)(torch.zeros(1), torch.tensor(positions)[None], kind)
    cos, sin = rotation_angles(Rope(parameters["rope_theta"], parameters.get("factor", 1.0)), positions)
    half = HEAD_SIZE // 2
    np.testing.assert_allclose(cos, expected_cos[0, :, :half].numpy(), rtol=0, atol=2e-6)
    np.testing.assert_allclose(sin, expected_sin[0, :, :half].numpy(), rtol=0, atol=2e-6)
