"""Whether a model's weights lie on this machine, without loading or fetching them."""

from collections.abc import Callable
from pathlib import Path

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked.load import ModelSpec

_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


def weights_at_hand(spec: str) -> bool:
    """Whether loading the spec would fetch nothing.

    Args:
        spec: as `load` takes it.

    Raises:
        UnsupportedModelError: no model spec.

    Example:
        >>> weights_at_hand("timm:test_vit?random"), weights_at_hand("timm:test_vit@no/such.file")
        (True, False)
    """
    parsed = ModelSpec.parse(spec)
    if parsed.random_seed is not None or parsed.source == "testbed":
        return True
    if parsed.checkpoint is not None:
        return Path(parsed.checkpoint).is_file()
    look: dict[str, Callable[[str], bool]] = {
        "hf": _hub,
        "timm": lambda name: _hub(_timm_repository(name)),
        "open_clip": _open_clip,
        "dinov2": _torch_hub,
    }
    if parsed.source not in look:
        raise UnsupportedModelError(f"{spec}: nobody knows where {parsed.source} keeps weights.")
    return look[parsed.source](parsed.name)


def _hub(repository: str | None) -> bool:
    """A local folder, or weights in the cache of huggingface_hub."""
    from huggingface_hub import try_to_load_from_cache

    if repository is None:
        return False
    if Path(repository).is_dir():
        return any((Path(repository) / name).is_file() for name in _FILES)
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in _FILES)


def _timm_repository(name: str) -> str | None:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name, allow_unregistered=True)
    return None if config is None else config.hf_hub_id


def _open_clip(name: str) -> bool:
    import open_clip

    if name.startswith(("hf-hub:", "local-dir:")):
        return _hub(name.partition(":")[2])
    architecture, _, tag = name.partition("/")
    repository = open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub", "")
    return bool(repository) and _hub(repository.strip("/"))


def _torch_hub(name: str) -> bool:
    import torch

    entry = name.rpartition("/")[2]
    return any((Path(torch.hub.get_dir()) / "checkpoints").glob(f"{entry}*_pretrain.pth"))
