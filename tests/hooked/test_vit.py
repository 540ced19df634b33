"""HookedViT as TransformerLens' users know it: runs, caches, hooks, early exits, weights, sizes."""

import copy

import pytest
import torch

from tests.hooked.families import make
from ttreg_interp.errors import InterventionError, LayoutError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT, TokenLayout
from ttreg_interp.hooked.rows import AttentionRows

PIXELS = torch.randn(2, 3, 32, 32)
VARIANTS = ["timm registers", "timm MAP head", "open_clip", "eva rotary, registers, packed SwiGLU"]


@pytest.fixture(params=VARIANTS)
def model(request):
    return HookedViT.wrap(make(request.param))


def test_the_usual_hook_names_are_there():
    names = HookedViT.wrap(make("open_clip")).hook_dict
    block = [
        "hook_resid_pre",
        "hook_resid_mid",
        "hook_resid_post",
        "hook_attn_out",
        "hook_mlp_out",
        "attn.hook_q",
        "attn.hook_k",
        "attn.hook_v",
        "attn.hook_z",
        "attn.hook_attn_scores",
        "attn.hook_pattern",
        "attn.hook_result",
        "mlp.hook_pre",
        "mlp.hook_post",
        "ln1.hook_scale",
        "ln1.hook_normalized",
        "ln2.hook_scale",
        "ln2.hook_normalized",
    ]
    whole = [
        "hook_embed",
        "hook_full_embed",
        "ln_pre.hook_scale",
        "ln_final.hook_scale",
        "ln_final.hook_normalized",
        "hook_out",
    ]
    assert set(whole) | {f"blocks.1.{name}" for name in block} <= set(names)


def test_a_batch_is_its_images(model):
    with torch.no_grad():
        whole = model(PIXELS)
        singles = torch.cat([model(image[None]) for image in PIXELS])
    torch.testing.assert_close(whole, singles, atol=1e-5, rtol=1e-5)


def test_a_cache_holds_what_was_asked_for(model):
    _, cache = model.run_with_cache(
        PIXELS, names_filter=["blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"]
    )
    assert set(cache.keys()) == {"blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"}
    assert cache["post", 1].shape == (2, model.layout().n_tokens, model.cfg.d_mlp)
    assert cache.layout == model.layout(PIXELS.shape)
    output, everything = model.run_with_cache(PIXELS[:1], remove_batch_dim=True)
    assert everything["pattern", 1].shape == (2, model.layout().n_tokens, model.layout().n_tokens)
    results = {name for name in model.hook_dict if name.endswith("hook_result")}
    assert set(everything.keys()) == set(model.hook_dict) - results
    assert isinstance(model.run_with_cache(PIXELS, return_cache_object=False)[1], dict)


def test_what_single_heads_write_is_computed_when_it_is_asked_for(model):
    _, everything = model.run_with_cache(PIXELS)
    _, asked = model.run_with_cache(PIXELS, names_filter=lambda name: "hook_result" in name)
    for layer in range(2):
        everything.compute_head_results()
        torch.testing.assert_close(everything["result", layer], asked["result", layer])


def test_taking_hooks_away_spares_permanent_ones_and_outer_contexts(model):
    point = model.blocks[0].mlp.hook_post
    point.add_perma_hook(lambda post, hook: None)
    with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda post, hook: None)]):
        model.run_with_cache(PIXELS)
        assert len(point.fwd_hooks) == 2
    assert len(point.fwd_hooks) == 1
    assert [name for name, point in model.hook_dict.items() if point.has_hooks()] == [point.name]
    model.reset_hooks(including_permanent=True)
    assert not point.has_hooks()


def test_stopping_early_gives_the_residual_before_that_block(model):
    _, cache = model.run_with_cache(
        PIXELS, names_filter=lambda name: "resid" in name or "embed" in name
    )
    assert torch.equal(model(PIXELS, stop_at_layer=1), cache["resid_pre", 1])
    assert torch.equal(model(PIXELS, stop_at_layer=-1), cache["resid_pre", 1])
    assert torch.equal(model(PIXELS, stop_at_layer=0), cache["hook_full_embed"])
    assert torch.equal(model(PIXELS, stop_at_layer=2), cache["resid_post", 1])
    with pytest.raises(LayoutError, match="has 2 blocks, so -2 to 2"):
        model(PIXELS, stop_at_layer=3)


def test_attention_stays_fused_until_somebody_asks(model, monkeypatch):
    from ttreg_interp.hooked import blocks

    fused = []
    kernel = blocks.scaled_dot_product_attention
    monkeypatch.setattr(
        blocks,
        "scaled_dot_product_attention",
        lambda *args, **kw: fused.append(1) or kernel(*args, **kw),
    )
    model(PIXELS)
    assert len(fused) == 2
    model.run_with_cache(PIXELS, names_filter="blocks.1.attn.hook_pattern")
    assert len(fused) == 3


def test_the_residual_stream_decomposes(model):
    _, cache = model.run_with_cache(PIXELS)
    final = cache["resid_post", 1]
    for stack in (
        cache.decompose_resid(),
        cache.get_full_resid_decomposition(expand_neurons=False),
        cache.get_full_resid_decomposition(expand_neurons=True),
        cache.stack_head_results(incl_remainder=True),
        cache.stack_neuron_results(2, incl_remainder=True),
    ):
        torch.testing.assert_close(stack.sum(dim=0), final, atol=1e-4, rtol=1e-4)
    assert torch.equal(cache.accumulated_resid()[-1], final)


def test_logit_attribution_adds_up_to_the_logit():
    model = HookedViT.wrap(make("timm plain"))
    logits, cache = model.run_with_cache(PIXELS)
    stack = cache.get_full_resid_decomposition(expand_neurons=False, apply_ln=True, pos_slice=0)
    gain, offset = model.ln_final.w, model.ln_final.b
    direction = model.tokens_to_residual_directions(3)
    found = (stack.sum(dim=0) * gain + offset) @ direction + model.b_U[3]
    torch.testing.assert_close(found, logits[:, 3], atol=1e-4, rtol=1e-4)


def test_a_norm_after_pooling_has_no_scale_per_token():
    model = HookedViT.wrap(make("timm no class token, average pooling"))
    _, cache = model.run_with_cache(PIXELS)
    with pytest.raises(UnsupportedModelError, match="one scale per image, not per token"):
        cache.decompose_resid(apply_ln=True)


def test_transformer_lens_patching_runs_on_images():
    import pandas as pd
    from transformer_lens import patching

    model = HookedViT.wrap(make("timm plain"))
    clean, corrupted = PIXELS[:1], PIXELS[1:]
    clean_logits, cache = model.run_with_cache(clean)
    metric = lambda logits: logits[0, 0]
    last_cls = pd.DataFrame([(1, 0), (1, 5)], columns=["layer", "pos"])
    patched = patching.generic_activation_patch(
        model,
        corrupted,
        cache,
        metric,
        patching.layer_pos_patch_setter,
        "resid_post",
        index_df=last_cls,
    )
    torch.testing.assert_close(
        patched[0], clean_logits[0, 0].detach()
    )  # [CLS] is all the head reads
    torch.testing.assert_close(patched[1], model(corrupted)[0, 0].detach())
    heads = patching.get_act_patch_attn_head_out_all_pos(model, corrupted, cache, metric)
    assert heads.shape == (2, 2) and heads.std() > 0


def test_attention_rows_are_rows_of_the_pattern(model):
    rows = AttentionRows(model, slice(0, 2))
    _, cache = model.run_with_cache(PIXELS)
    model.run_with_hooks(PIXELS, fwd_hooks=rows.fwd_hooks())
    for layer in range(2):
        torch.testing.assert_close(rows[layer], cache["pattern", layer][:, :, :2])


def test_attention_rows_see_masks_and_edited_patterns(model):
    def hide(mask, hook):
        return mask.index_fill(-1, torch.tensor([1]), float("-inf"))

    def uniform(pattern, hook):
        return torch.full_like(pattern, 1 / pattern.shape[-1])

    for edit in (("blocks.0.attn.hook_mask", hide), ("blocks.0.attn.hook_pattern", uniform)):
        with model.hooks(fwd_hooks=[edit]):
            rows = AttentionRows(model, slice(0, 1))
            _, cache = model.run_with_cache(PIXELS, names_filter="blocks.0.attn.hook_pattern")
            model.run_with_hooks(PIXELS, fwd_hooks=rows.fwd_hooks())
        torch.testing.assert_close(rows[0], cache["pattern", 0][:, :, :1])


def test_a_copy_stands_on_its_own_weights():
    model = HookedViT.wrap(make("timm plain"))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.source.patch_embed.proj.weight.zero_()
    assert not torch.equal(model(PIXELS), twin(PIXELS))
    assert torch.equal(twin(PIXELS), twin.source(PIXELS))


def test_wrapping_leaves_the_source_as_it_was():
    module = make("timm registers")
    before = module(PIXELS)
    keys = list(module.state_dict())
    attributes = {name: set(vars(child)) for name, child in module.named_modules()}
    HookedViT.wrap(module).run_with_cache(PIXELS)
    assert torch.equal(module(PIXELS), before)
    assert list(module.state_dict()) == keys
    assert {name: set(vars(child)) for name, child in module.named_modules()} == attributes


def test_gradients_reach_pixels_and_weights(model):
    pixels = PIXELS.clone().requires_grad_()
    model(pixels).square().sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    assert model.blocks[0].mlp.parts.out.weight.grad.abs().sum() > 0


def test_other_sizes_only_where_the_model_takes_them():
    fixed = HookedViT.wrap(make("timm plain"))
    with pytest.raises(LayoutError, match=r"takes \(32, 32\) only. Load it for another size"):
        fixed(torch.zeros(1, 3, 48, 32))
    free = HookedViT.wrap(make("timm any image size"))
    wide = torch.randn(1, 3, 24, 48)
    assert torch.equal(free(wide), free.source(wide))
    assert free.layout(wide.shape) == TokenLayout(1, 0, height=3, width=6)
    with pytest.raises(LayoutError, match="multiples of the patch, 8 x 8 pixels"):
        free(torch.zeros(1, 3, 30, 32))
    with pytest.raises(LayoutError, match=r"expected \[batch, 3, height, width\]"):
        free(torch.zeros(1, 1, 32, 32))


def test_a_language_question_to_a_vision_model_is_answered(model):
    with pytest.raises(UnsupportedModelError, match="pass pixels"):
        model.to_tokens("a cat")
    with pytest.raises(UnsupportedModelError, match="pass the class index"):
        model.to_single_token("cat")


class Spoiled:
    """An intervention that does to `reset_hooks` what a careless notebook does."""

    n_added_tokens = 0

    def __init__(self, name):
        self.name = name

    def fwd_hooks(self, model):
        return [(self.name, lambda activation, hook: activation * 2)]

    def check_compatible(self, others):
        pass


def test_an_intervention_that_did_not_run_raises(model):
    edit = Spoiled("blocks.1.mlp.hook_post")
    with (
        pytest.raises(InterventionError, match="No forward pass reached the hooks"),
        model.intervened(edit),
    ):
        model.source(PIXELS)
    with pytest.raises(InterventionError, match="ran 0 times in 1 forward"), model.intervened(edit):
        model.blocks[1].mlp.hook_post.remove_hooks("fwd")
        model(PIXELS)
    missing = Spoiled("blocks.7.mlp.hook_post")
    with (
        pytest.raises(InterventionError, match="no hook point blocks.7.mlp"),
        model.intervened(missing),
    ):
        model(PIXELS)
    with model.intervened(edit):  # an early exit before the layer is no miss
        model(PIXELS, stop_at_layer=1)


def test_leaving_a_context_takes_all_hooks_away(model):
    plain = model(PIXELS)
    with (
        pytest.raises(RuntimeError, match="mine"),
        model.intervened(Spoiled("blocks.0.mlp.hook_post")),
    ):
        model(PIXELS)
        raise RuntimeError("mine")
    assert not model.list_hooks() and model.n_added_tokens == 0
    assert torch.equal(model(PIXELS), plain)
