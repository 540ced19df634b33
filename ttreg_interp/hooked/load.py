"""Model specs to hooked models."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ttreg_interp.errors import ArtifactError, ContractError, UnsupportedModelError
from ttreg_interp.hooked.fast_cpu import Precision, kernels_of
from ttreg_interp.hooked.language import HookedLM
from ttreg_interp.hooked.sources import SOURCES, Loaded, Request, source_file
from ttreg_interp.hooked.sources.common import seeded
from ttreg_interp.hooked.sources.language import LANGUAGE_SOURCES
from ttreg_interp.hooked.sources.language import load as load_language
from ttreg_interp.hooked.vit import HookedViT

PREFIXES = (*SOURCES, *LANGUAGE_SOURCES)
"""What a model spec may begin with."""


@dataclass(frozen=True)
class ModelSpec:
    """`SOURCE:NAME[@CHECKPOINT][?random[=SEED]]`.

    Example:
        >>> ModelSpec.parse("timm:vit_tiny_patch16_224@weights/model.safetensors").checkpoint
        'weights/model.safetensors'
        >>> str(ModelSpec.parse("open_clip:ViT-B-16/laion2b_s34b_b88k"))
        'open_clip:ViT-B-16/laion2b_s34b_b88k'
        >>> ModelSpec.parse("timm:test_vit?random=3").random_seed
        3
    """

    source: str
    """Which library: one of `PREFIXES`."""
    name: str
    """The model's name there."""
    checkpoint: str | None = None
    """A local file of weights."""
    random_seed: int | None = None
    """Seed of random weights, None for trained ones."""

    @classmethod
    def parse(cls, text: str) -> "ModelSpec":
        """Read a spec.

        Raises:
            UnsupportedModelError: no source, no name, or an unknown option; says the form.
        """
        source, colon, rest = text.partition(":")
        rest, _, option = rest.partition("?")
        name, _, checkpoint = rest.partition("@")
        word, _, seed = option.partition("=")
        known = source in PREFIXES and bool(name) and bool(colon)
        if not known or word not in ("", "random") or not (seed == "" or seed.isdigit()):
            raise UnsupportedModelError(
                f"{text!r} is no model spec. The form is SOURCE:NAME, with SOURCE one of "
                f"{', '.join(PREFIXES)}; then @FILE for local weights or ?random[=SEED] for random "
                "ones. E.g. 'hf:facebook/dinov2-large', 'timm:vit_tiny_patch16_224@model.safetensors', "
                "'open_clip:ViT-B-16?random'."
            )
        return cls(source, name, checkpoint or None, int(seed or 0) if word else None)

    def __str__(self) -> str:
        checkpoint = f"@{self.checkpoint}" if self.checkpoint else ""
        random = "" if self.random_seed is None else f"?random={self.random_seed}"
        return f"{self.source}:{self.name}{checkpoint}{random}"


def load(
    spec: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    fast_cpu: bool | Precision = False,
) -> Any:
    """A hooked model by name: a HookedViT with its preprocessing and, where it has one, its text
    tower; or a HookedLM with its tokenizer.

    Args:
        spec: `open_clip:ARCHITECTURE/TAG`, `hf:ORGANISATION/MODEL` (or a local directory),
            `timm:MODEL`, `dinov2:HUB_ENTRY`, `testbed:planted`; then `@FILE` for a local
            checkpoint or `?random[=SEED]` for random weights. Of language models
            `hf-lm:ORGANISATION/MODEL` (or a local directory), `tl:NAME`, `llama2c:FILE`,
            `testbed-lm:FAMILY`.
        image_size: another resolution in pixels (height and width), where the family can
            interpolate its position embeddings.
        device: where to put the parameters.
        dtype: of the parameters.
        fast_cpu: other kernels for the linears of a vision model in float32 on a CPU. True: oneDNN,
            for those linears where it is faster than torch's own on this machine (it takes a second
            or so to find out). 'float32': oneDNN for all. 'bfloat16': products in bfloat16 inside
            the blocks; the residual stream stays in float32.

    Raises:
        UnsupportedModelError: unknown spec, name or family; names what is near. Or `fast_cpu` is not
            for this model.
        ArtifactError: a checkpoint that is missing or of another architecture.
        ContractError: NaN or inf in the weights.

    Example:
        >>> model = load("timm:test_vit?random")
        >>> model.image_size, model.cfg.n_layers
        ((160, 160), 6)
    """
    parsed = ModelSpec.parse(spec)
    if parsed.checkpoint and not Path(parsed.checkpoint).is_file():
        raise ArtifactError(
            f"No checkpoint at {parsed.checkpoint}. Check the path after '@' in {spec!r}."
        )
    if parsed.source in LANGUAGE_SOURCES:
        _refuse_of_language_model(parsed, image_size=image_size, fast_cpu=fast_cpu or None)
        return _language_model(parsed, device, dtype)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    request = Request(parsed.name, parsed.checkpoint, parsed.random_seed is not None, size)
    with seeded(parsed.random_seed or 0):
        loaded = _from_source(parsed, request)
        if request.random:
            _perturb(loaded.module)
    check_finite_weights(loaded.module, spec)
    model = HookedViT.wrap(loaded.module)
    if size and model.parts.resizable:
        model.parts = replace(model.parts, image_size=size)
    model.preprocess, model.text, model.spec = loaded.preprocess, loaded.text, str(parsed)
    model = model.to(device=device, dtype=dtype)
    if model.text is not None:
        model.text.module.to(device=device, dtype=dtype)
    model.fast_cpu = kernels_of(model.eval(), fast_cpu)
    return model


def _refuse_of_language_model(spec: ModelSpec, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise UnsupportedModelError(f"{spec} is a language model; leave out {name}={value!r}.")


def _language_model(spec: ModelSpec, device: Any, dtype: Any) -> HookedLM:
    random = spec.random_seed is not None
    with seeded(spec.random_seed or 0):
        loaded = load_language(spec.source, Request(spec.name, spec.checkpoint, random))
        if random:
            _perturb(loaded.module)
    check_finite_weights(loaded.module, str(spec))
    model = HookedLM.wrap(loaded.module, loaded.tokenizer)
    model.spec = str(spec)
    for parameter in loaded.module.parameters():  # the tables of angles stay in float32
        parameter.data = parameter.data.to(dtype or parameter.dtype)
    return model.to(device=device).eval()


def _from_source(spec: ModelSpec, request: Request) -> Loaded:
    try:
        return source_file(spec.source).load(request)
    except ModuleNotFoundError as error:
        extra = {"open_clip": "openclip", "timm": "timm", "testbed": "demo"}.get(spec.source, "all")
        raise UnsupportedModelError(
            f"{spec} needs the package {error.name!r}, which is not installed: "
            f"pip install 'ttreg-interp[{extra}]'."
        ) from None


@torch.no_grad()
def _perturb(module: nn.Module) -> None:
    """Add normal noise of 0.02, so that no bias, gate or head keeps the zeros it starts from."""
    for parameter in module.parameters():
        parameter += 0.02 * torch.randn_like(parameter)


def check_finite_weights(module: nn.Module, what: str) -> None:
    """Refuse a model with broken weights.

    Raises:
        ContractError: names the first parameter that holds NaN or inf.
    """
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            bad = int((~torch.isfinite(parameter)).sum())
            raise ContractError(
                f"{what}: parameter {name} holds {bad} NaN or inf of {parameter.numel()} values. "
                "The checkpoint is damaged or was saved in too narrow a dtype; get it again."
            )


def weights_hash(module: nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of all parameters and buffers, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(raw.numpy()))
    return digest.hexdigest()
