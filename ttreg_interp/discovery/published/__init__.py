"""Lists of register neurons that others published, as data with their sources."""

import json
from importlib.resources import files

from ttreg_interp.discovery.register_neurons import RegisterNeurons
from ttreg_interp.errors import ArtifactError


def published_lists() -> tuple[str, ...]:
    """Names of the published lists.

    Example:
        >>> "dinov2_vitl14_hub" in published_lists()
        True
    """
    names = (item.name for item in files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def read_published(name: str) -> RegisterNeurons:
    """A published list by name.

    Raises:
        ArtifactError: no list of that name; names those there are.
    """
    if name not in published_lists():
        raise ArtifactError(
            f"No published list {name!r}; there are {', '.join(published_lists())}."
        )
    body = json.loads((files(__name__) / f"{name}.json").read_text())
    return RegisterNeurons.from_dict(body, name)
