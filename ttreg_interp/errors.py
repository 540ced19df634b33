"""One error root. Every message says what was found, what is allowed, and what to do."""


class TTRegError(Exception):
    """Root of every error that this package raises on purpose."""


class UnsupportedModelError(TTRegError):
    """No source file knows this model, or one of its parts is of an unknown kind."""


class ContractError(TTRegError):
    """A hooked model breaks a promise: parity with its source, causality, or finite activations."""


class LayoutError(TTRegError):
    """Tokens, grids or image sizes that do not fit together."""


class InterventionError(TTRegError):
    """An intervention that does not fit the model, conflicts with another, or did not fire."""


class ArtifactError(TTRegError):
    """A saved file that is damaged, of another schema, or made for another model."""


class DataError(TTRegError):
    """Images, labels or annotations that are missing or cannot be read."""
