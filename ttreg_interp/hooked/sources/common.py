"""What several source files need: checks, and the usual ways to hold q, k, v and weights."""

from collections.abc import Callable, Collection
from contextlib import contextmanager
from typing import Any, overload

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ttreg_interp.errors import ArtifactError, UnsupportedModelError
from ttreg_interp.hooked.parts import Heads, Tokens


def class_name(module: nn.Module) -> str:
    """Library-qualified class, e.g. 'timm VisionTransformer'."""
    return f"{type(module).__module__.split('.')[0]} {type(module).__name__}"


def is_instance(module: Any, library: str, *classes: str) -> bool:
    """Whether `module` is one of `library`'s classes (subclasses count), without importing it."""
    return any(
        cls.__module__.split(".")[0] == library and cls.__name__ in classes
        for cls in type(module).__mro__
    )


def require(condition: bool, module: nn.Module, what: str) -> None:
    """Refuse a variant that the forward of HookedViT would compute wrongly.

    Raises:
        UnsupportedModelError: `condition` is false.
    """
    if not condition:
        raise UnsupportedModelError(
            f"{class_name(module)}: {what} is not supported. HookedViT covers pre-norm blocks "
            "(attention, then MLP); see docs/how-to/add-a-model.md."
        )


def or_none(module: nn.Module | None) -> nn.Module | None:
    """`module`, or None in place of an Identity."""
    return None if module is None or isinstance(module, nn.Identity) else module


def fused_qkv(
    project: Callable[[Tokens], Tensor],
    n_heads: int,
    q_norm: Callable[[Tensor], Tensor] | None = None,
    k_norm: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Tokens], tuple[Heads, Heads, Heads]]:
    """q, k, v from one projection to [batch, token, 3 * head * d_head]; norms act on each head."""

    def qkv(x: Tokens) -> tuple[Heads, Heads, Heads]:
        q, k, v = project(x).unflatten(-1, (3, n_heads, -1)).unbind(2)
        return (q if q_norm is None else q_norm(q)), (k if k_norm is None else k_norm(k)), v

    return qkv


def split_qkv(
    q_proj: Callable[[Tokens], Tensor],
    k_proj: Callable[[Tokens], Tensor],
    v_proj: Callable[[Tokens], Tensor],
    n_heads: int,
    q_norm: Callable[[Tensor], Tensor] | None = None,
    k_norm: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Tokens], tuple[Heads, Heads, Heads]]:
    """q, k, v from three projections to [batch, token, head * d_head]; norms act on each head."""

    def qkv(x: Tokens) -> tuple[Heads, Heads, Heads]:
        q, k, v = (project(x).unflatten(-1, (n_heads, -1)) for project in (q_proj, k_proj, v_proj))
        return (q if q_norm is None else q_norm(q)), (k if k_norm is None else k_norm(k)), v

    return qkv


@overload
def three(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def three(tensor: None) -> tuple[None, None, None]: ...
def three(tensor: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The q, k and v thirds of a fused weight or bias."""
    if tensor is None:
        return None, None, None
    q, k, v = tensor.chunk(3, dim=0)
    return q, k, v


def linear_weights(linear: nn.Linear) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """Weight and bias of a linear, read when asked for."""
    return lambda: (linear.weight, linear.bias)


def packed_weights(linear: nn.Linear, half: int) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """Weight and bias of one half of a packed (gate, linear) projection."""

    def weights() -> tuple[Tensor, Tensor | None]:
        bias = None if linear.bias is None else linear.bias.chunk(2, dim=0)[half]
        return linear.weight.chunk(2, dim=0)[half], bias

    return weights


@contextmanager
def seeded(seed: int = 0):
    """Torch's CPU random state set to `seed` inside, and put back afterwards."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def read_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a local file: safetensors, or what torch saved (`weights_only`: no code runs).

    Raises:
        ArtifactError: the file holds no state dict, or is damaged.
    """
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise ArtifactError(
            f"{path} cannot be read as weights ({type(error).__name__}: {str(error)[:120]}). Give a "
            ".safetensors file, or a state dict saved by torch."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ArtifactError(
            f"{path} holds a {type(state).__name__} that is no state dict. Save "
            "`module.state_dict()` alone, best as .safetensors."
        )
    return state


def load_weights(module: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Load a state dict into `module`, all keys and shapes equal.

    Raises:
        ArtifactError: the checkpoint is of another architecture; says how it differs.
    """
    own = module.state_dict()
    shapes = [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    ]
    require_same_keys(module, path, own.keys() - state.keys(), state.keys() - own.keys(), shapes)
    module.load_state_dict(state)


def require_same_keys(
    module: nn.Module,
    path: str,
    missing: Collection[str],
    unexpected: Collection[str],
    shapes: Collection[str],
) -> None:
    """Refuse weights that are not exactly those of `module`.

    Raises:
        ArtifactError: there are missing or unexpected keys, or keys of other shapes; names some.
    """
    if missing or unexpected or shapes:
        raise ArtifactError(
            f"{path} is not a checkpoint of {class_name(module)}: {len(missing)} keys missing "
            f"(e.g. {sorted(missing)[:2]}), {len(unexpected)} unexpected "
            f"(e.g. {sorted(unexpected)[:2]}), {len(shapes)} of another shape "
            f"(e.g. {sorted(shapes)[:1]}). Name the architecture that the file was saved from."
        )
