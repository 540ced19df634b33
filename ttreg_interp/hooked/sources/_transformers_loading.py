"""transformers: configurations, weights and text towers by name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ttreg_interp.errors import ArtifactError, UnsupportedModelError
from ttreg_interp.hooked.sources import Request, common
from ttreg_interp.hooked.sources._transformers_architectures import ARCHITECTURES, configuration
from ttreg_interp.hooked.sources._transformers_families import READERS
from ttreg_interp.hooked.text import TextTower

_TOWER_TYPES = (
    "vit",
    "deit",
    "clip_vision_model",
    "siglip_vision_model",
    "siglip2_vision_model",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "internvl_vision",
)
_WITH_TEXT = ("CLIPModel", "SiglipModel", "Siglip2Model")


def config_of(request: Request) -> Any:
    """The model's configuration.

    Raises:
        UnsupportedModelError: no supported tower, or random weights of an unknown name.
        ArtifactError: no such directory or hub entry, or the hub is out of reach.
    """
    from transformers import AutoConfig

    local = Path(request.name).is_dir()
    own_weights = request.random or request.checkpoint is not None
    if own_weights and not local and request.name in ARCHITECTURES:
        return configuration(request.name)
    if request.random and not local:
        raise UnsupportedModelError(
            f"hf:{request.name}?random: random weights look nothing up on a hub, and this is neither "
            f"a local directory with a config.json nor one of {', '.join(ARCHITECTURES)}."
        )
    with _fetching(request.name, "config.json"):
        config = AutoConfig.from_pretrained(request.name)
    tower_type = getattr(config, "vision_config", config).model_type
    if tower_type not in _TOWER_TYPES:
        raise UnsupportedModelError(
            f"hf:{request.name} is a {config.model_type!r} model whose tower is {tower_type!r}; "
            f"supported towers are {', '.join(_TOWER_TYPES)}."
        )
    return config


def model_of(config: Any, request: Request) -> nn.Module:
    """The model of `config`: with random weights, those of a local file, or those of its name.

    Raises:
        ArtifactError: weights that are missing, damaged, or of another architecture.
    """
    model_class = _model_class(config)
    if request.random:
        return model_class(config).eval()
    options = {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if request.checkpoint:
        state = common.read_weights(request.checkpoint)
        # Not load_state_dict: checkpoints of earlier versions have other names.
        module, info = model_class.from_pretrained(None, state_dict=state, **options)
        unexpected = info["unexpected_keys"]
    else:
        with _fetching(request.name, "weights"):
            module, info = model_class.from_pretrained(request.name, **options)
        unexpected = ()  # heads that this class has not
    missing = set(info["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        # Saved without a pooler; transformers would go on with a random one.
        module.pooler, missing = None, set()
    shapes = [
        f"{key}: {tuple(found)} in the file, {tuple(expected)} in the model"
        for key, found, expected in info["mismatched_keys"]
    ]
    common.require_same_keys(
        module, request.checkpoint or request.name, missing, unexpected, shapes
    )
    return module


def _model_class(config: Any) -> Any:
    """The class that the checkpoint names if this file knows it, else the one without a head."""
    import transformers

    for name in config.architectures or ():
        if name in READERS or name in _WITH_TEXT:
            return getattr(transformers, name)
    with torch.device("meta"):
        return type(transformers.AutoModel.from_config(config))


@contextmanager
def _fetching(name: str, what: str) -> Iterator[None]:
    """One line instead of the hub's traceback."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ArtifactError(
            f"hf:{name}: no {what} there ({reason}). Check the name and the connection; a local "
            "directory with config.json and weights works too, 'hf:path/to/directory'."
        ) from None


def text_of(module: Any, name: str) -> TextTower | None:
    """The text tower of a CLIP or SigLIP model; its tokenizer is read at first use."""
    if not common.is_instance(module, "transformers", *_WITH_TEXT):
        return None
    length = module.config.text_config.max_position_embeddings

    @cache
    def tokenizer() -> Any:
        from transformers import AutoTokenizer

        with _fetching(name, "tokenizer"):
            return AutoTokenizer.from_pretrained(name)

    def tokenize(texts: Sequence[str]) -> Int[Tensor, "text position"]:
        # Padded to full length without a mask: CLIP's texts are causal, SigLIP's trained so.
        rows = tokenizer()(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        return rows["input_ids"]

    def encode(tokens: Int[Tensor, "text position"]) -> Tensor:
        return module.get_text_features(tokens).pooler_output

    return TextTower(module=module, tokenize=tokenize, encode=encode)
