"""Language models by name: `hf-lm:`, `tl:`, `llama2c:` and `testbed-lm:`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ttreg_interp.errors import ArtifactError, UnsupportedModelError
from ttreg_interp.hooked.sources import Request, common, llama2c

LANGUAGE_SOURCES = ("hf-lm", "tl", "llama2c", "testbed-lm")
"""Prefixes of specs that `tt.load` makes a HookedLM of."""


TRAINED = "backcopy"
"""The trained testbed model, beside the planted families."""


@dataclass(frozen=True)
class LoadedLM:
    """What a source of language models gives back."""

    module: nn.Module
    """The model, in evaluation mode."""
    tokenizer: Any
    """Its tokenizer, or None."""


def load(source: str, request: Request) -> LoadedLM:
    """A language model by name.

    - `hf-lm:ORGANISATION/MODEL` or a local directory: transformers; `?random` for random weights of
      a local directory's config.json. Nothing is looked up on a hub for a local directory.
    - `tl:NAME`: TransformerLens' name for one of those, e.g. `tl:gpt2-small`, `tl:pythia-70m`.
    - `llama2c:FILE.bin`: a checkpoint of llama2.c, with the tokenizer `tok*.bin` beside it.
    - `testbed-lm:FAMILY`: a planted model, FAMILY one of `testbed.planted_lm.FAMILIES`.
    - `testbed-lm:backcopy`: the trained testbed model, `testbed.language.backcopy_lm`.

    Raises:
        UnsupportedModelError: an unknown name, or an option that the source does not take.
        ArtifactError: no such file or hub entry, or weights that do not fit.
    """
    if request.checkpoint:
        raise UnsupportedModelError(
            f"{source}:{request.name}@{request.checkpoint}: a language model takes its weights from "
            "its directory or file. Leave out '@...'."
        )
    if request.random and source != "hf-lm":
        raise UnsupportedModelError(f"{source}:{request.name} has no ?random; hf-lm:DIRECTORY has.")
    makers = {
        "hf-lm": _transformers,
        "tl": _transformer_lens,
        "llama2c": _llama2c,
        "testbed-lm": _testbed,
    }
    return makers[source](request)


def _transformers(request: Request) -> LoadedLM:
    from transformers import AutoConfig, AutoModelForCausalLM

    local = Path(request.name).is_dir()
    if request.random and not local:
        raise UnsupportedModelError(
            f"hf-lm:{request.name}?random: random weights look nothing up on a hub, and this is no "
            "local directory with a config.json."
        )
    with _fetching(request.name):
        if request.random:
            config = AutoConfig.from_pretrained(request.name)
            return LoadedLM(AutoModelForCausalLM.from_config(config).eval(), _tokenizer(request))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            request.name, output_loading_info=True, local_files_only=local
        )
    module, info = loaded
    common.require_same_keys(module, request.name, set(info["missing_keys"]), (), ())
    return LoadedLM(module.eval(), _tokenizer(request))


def _tokenizer(request: Request) -> Any:
    """None where a local directory has none: the model then takes token ids."""
    from transformers import AutoTokenizer

    local = Path(request.name).is_dir()
    if local and not any(Path(request.name).glob("tokenizer*")):
        return None
    with _fetching(request.name):
        return AutoTokenizer.from_pretrained(request.name, local_files_only=local)


def _transformer_lens(request: Request) -> LoadedLM:
    from transformer_lens.supported_models import get_official_model_name

    try:
        name = get_official_model_name(request.name)
    except ValueError:
        raise UnsupportedModelError(
            f"tl:{request.name} is no name that TransformerLens knows. Write hf-lm:ORGANISATION/MODEL "
            "for any model of transformers."
        ) from None
    return _transformers(Request(name))


def _llama2c(request: Request) -> LoadedLM:
    path = Path(request.name)
    if not path.is_file():
        raise ArtifactError(f"No llama2.c checkpoint at {path}. Check the path after 'llama2c:'.")
    return LoadedLM(*llama2c.load(path))


def _testbed(request: Request) -> LoadedLM:
    from ttreg_interp.testbed.planted_lm import FAMILIES, planted_lm

    if request.name == TRAINED:
        from ttreg_interp.testbed.language import backcopy_lm

        return LoadedLM(backcopy_lm(), None)
    family, _, seed = request.name.partition("/")
    if family not in FAMILIES or not (seed == "" or seed.isdigit()):
        raise UnsupportedModelError(
            f"testbed-lm:{request.name} is none of the embedded language models. Write "
            f"testbed-lm:FAMILY[/SEED] with FAMILY one of {', '.join(FAMILIES)}, or testbed-lm:{TRAINED}."
        )
    return LoadedLM(planted_lm(family, seed=int(seed or 0)).module, None)


@contextmanager
def _fetching(name: str) -> Iterator[None]:
    """One line instead of the hub's traceback."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ArtifactError(
            f"hf-lm:{name}: not to be had ({reason}). Check the name and the connection; a local "
            "directory with config.json and weights works too, 'hf-lm:path/to/directory'."
        ) from None
