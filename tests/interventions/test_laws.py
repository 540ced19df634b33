"""The laws that every intervention obeys, over kinds, layouts and batches."""

from functools import cache
from inspect import isabstract

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions import Empty, Intervention, Sequence
from ttreg_interp.interventions.value import Value

from .kinds import EXAMPLES, fits
from .laws import (
    any_batches,
    batches_of,
    cases,
    compatible,
    few,
    law,
    layouts,
    n_hooks,
    outcome,
    run,
    same,
)
from .models import LAYOUTS, images, model

EVERYWHERE = [
    (layout, example) for layout in LAYOUTS for example in EXAMPLES if fits(example, layout)
]
ONCE = [
    next(
        (layout, example) for layout in (*list(LAYOUTS)[i % 5 :], *LAYOUTS) if fits(example, layout)
    )
    for i, example in enumerate(EXAMPLES)
]
"""Every kind on one layout or another."""


@cache
def plain(layout: str) -> torch.Tensor:
    """The plain model's output on three images."""
    return run(layout, images(3))


@pytest.mark.parametrize(("layout", "example"), EVERYWHERE)
def test_every_kind_changes_the_output_on_every_layout(layout, example):
    change = (run(layout, images(3), EXAMPLES[example](layout)) - plain(layout)).abs()
    assert change.amax(dim=1).min() > 1e-4


def test_every_kind_is_tried_here():
    kinds = {
        kind
        for kind in Value.kinds.values()
        if issubclass(kind, Intervention) and not isabstract(kind)
        if kind.__module__.startswith("ttreg_interp.")
    }
    tried = {type(EXAMPLES[example](layout)) for layout, example in ONCE}
    assert tried == kinds - {Empty, Sequence}, "give the new kind an example in kinds.py"


# In bfloat16 the last bits depend on the size of the batch, and outliers turn on them.
exact = batches_of(torch.float32, torch.float64)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@law
@given(cases(), exact)
def test_a_batch_is_its_images_one_by_one(case, pixels):
    layout, intervention = case
    together = run(layout, pixels, intervention)
    alone = torch.cat([run(layout, image[None], intervention) for image in pixels])
    torch.testing.assert_close(together, alone, **CLOSE)


@law
@given(cases(), exact, st.randoms(use_true_random=False))
def test_permuting_a_batch_permutes_the_output(case, pixels, random):
    layout, intervention = case
    order = random.sample(range(len(pixels)), len(pixels))
    expected = run(layout, pixels, intervention)[order]
    torch.testing.assert_close(run(layout, pixels[order], intervention), expected, **CLOSE)


@law
@given(cases(n=2), any_batches)
def test_a_plus_b_is_a_and_then_b(case, pixels):
    layout, a, b = case
    assume(compatible(a, b))
    composed = outcome(layout, pixels, a + b)
    assert same(composed, outcome(layout, pixels, a, b))
    with torch.no_grad(), model(layout, pixels.dtype).intervened(a):
        nested = outcome(layout, pixels, b)
    assert same(composed, nested)


@few
@given(cases(n=3))
def test_composition_is_associative(case):
    _, a, b, c = case
    assume(compatible(a, b, c))
    assert (a + b) + c == a + (b + c) == Sequence((a, b, c))


@few
@given(cases(), any_batches)
def test_empty_is_the_unit_of_composition(case, pixels):
    layout, a = case
    assert a + Empty() == a == Empty() + a
    assert torch.equal(run(layout, pixels, Empty()), model(layout, pixels.dtype)(pixels).detach())
    assert torch.equal(run(layout, pixels, a, Empty()), run(layout, pixels, a))


@law
@given(cases(n=2), any_batches)
def test_interventions_at_different_hook_points_commute(case, pixels):
    layout, a, b = case
    points = [{name for name, _ in i.fwd_hooks(model(layout))} for i in (a, b)]
    assume(not points[0] & points[1] and compatible(a, b) and compatible(b, a))
    assert same(outcome(layout, pixels, a, b), outcome(layout, pixels, b, a))


@few
@given(
    layouts,
    any_batches,
    st.sampled_from(["zeroed neurons", "shuffled neurons", "neurons moved to a heart"]),
)
def test_edits_of_disjoint_neurons_commute(layout, pixels, example):
    from ttreg_interp.interventions import ScaleNeurons

    a, b = EXAMPLES[example](layout), ScaleNeurons({0: [4, 51], 1: [8]}, -2.0)
    assert torch.equal(run(layout, pixels, a, b), run(layout, pixels, b, a))


@law
@given(cases(), any_batches)
def test_leaving_the_context_restores_the_model(case, pixels):
    layout, intervention = case
    before = run(layout, pixels)
    run(layout, pixels, intervention)
    assert n_hooks(layout, pixels.dtype) == 0
    assert torch.equal(run(layout, pixels), before)
    assert model(layout, pixels.dtype).n_added_tokens == 0


@few
@given(cases(), any_batches)
def test_an_exception_restores_the_model_too(case, pixels):
    layout, intervention = case
    before = run(layout, pixels)
    hooked = model(layout, pixels.dtype)
    with pytest.raises(ZeroDivisionError), hooked.intervened(intervention):
        _ = 1 / 0
    assert n_hooks(layout, pixels.dtype) == 0
    assert torch.equal(run(layout, pixels), before)


@law
@given(cases(), any_batches)
def test_plain_hooks_do_the_same_as_the_context(case, pixels):
    layout, intervention = case
    hooked = model(layout, pixels.dtype)
    with torch.no_grad():
        plain = hooked.run_with_hooks(pixels, fwd_hooks=intervention.fwd_hooks(hooked))
    assert torch.equal(plain, run(layout, pixels, intervention))


@law
@given(cases(), any_batches)
def test_nothing_is_edited_in_place(case, pixels):
    """What a hook before the intervention has seen stays as it was seen."""
    layout, intervention = case
    hooked = model(layout, pixels.dtype)
    seen = []

    def keep(activation, hook):
        seen.append((activation, activation.clone()))

    points = {name for name, _ in intervention.fwd_hooks(hooked)}
    with torch.no_grad(), hooked.hooks(fwd_hooks=[(name, keep) for name in points]):
        run(layout, pixels, intervention)
    assert seen
    assert all(torch.equal(activation, copy) for activation, copy in seen)


@law
@given(cases(n=2))
def test_json_round_trip(case):
    _, a, b = case
    for value in (a, a + b) if compatible(a, b) else (a, b):
        again = Intervention.from_json(value.to_json())
        assert again == value
        assert hash(again) == hash(value)
        assert repr(again) == repr(value)
    assert a != b


@few
@given(cases(), any_batches)
def test_what_json_brings_back_does_the_same(case, pixels):
    layout, a = case
    again = Intervention.from_json(a.to_json())
    assert torch.equal(run(layout, pixels, again), run(layout, pixels, a))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("layout", "example"), ONCE)
def test_every_kind_runs_in_other_precisions(layout, example, dtype):
    """float64 gives what float32 gives; bfloat16 is finite and of its own dtype."""
    intervention, pixels = EXAMPLES[example](layout), images(2)
    out = run(layout, pixels.to(dtype), intervention)
    assert out.dtype == dtype
    assert out.isfinite().all()
    if dtype == torch.float64:
        expected = run(layout, pixels, intervention)
        torch.testing.assert_close(out.float(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_kind_runs_under_autocast(example):
    layout = "timm with 4 trained registers"
    with torch.autocast("cpu", torch.bfloat16):
        out = run(layout, images(2), EXAMPLES[example](layout))
    assert out.isfinite().all()


@pytest.mark.parametrize(("layout", "example"), ONCE)
def test_gradients_flow_through_every_kind(layout, example):
    hooked = model(layout)
    pixels = images(2).requires_grad_()
    with hooked.intervened(EXAMPLES[example](layout)):
        (gradient,) = torch.autograd.grad(hooked(pixels).square().sum(), pixels)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize(("layout", "example"), ONCE)
def test_gradients_are_those_of_finite_differences(layout, example):
    hooked = model(layout, torch.float64)
    pixels = images(1, 5, torch.float64).requires_grad_()
    with hooked.intervened(EXAMPLES[example](layout)):
        assert torch.autograd.gradcheck(hooked, pixels, fast_mode=True)


@few
@given(layouts, st.sampled_from(["a test-time register", "neurons moved to a heart"]))
def test_moving_the_same_neurons_twice_is_refused(layout, example):
    once = EXAMPLES["a test-time register"](layout)
    with pytest.raises(InterventionError, match="both move 5 neurons.*zeros"):
        once + EXAMPLES[example](layout)
    with (
        pytest.raises(InterventionError, match="Apply one of them"),
        model(layout).intervened(once),
        model(layout).intervened(EXAMPLES[example](layout)),
    ):
        pass
    assert n_hooks(layout) == 0
