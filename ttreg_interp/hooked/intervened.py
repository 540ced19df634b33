"""Running a hooked model under interventions, and making sure that they really ran."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from ttreg_interp.errors import InterventionError

HookFunction = Callable[..., Any]
NamedHook = tuple[str, HookFunction]


@runtime_checkable
class SupportsHooks(Protocol):
    """Anything that says, for a model, which hooks it needs; `compatible_with` may refuse others."""

    @property
    def n_added_tokens(self) -> int:
        """Rows that it adds to the token axis."""
        ...

    def fwd_hooks(self, model: Any) -> list[NamedHook]:
        """TransformerLens hooks, `(hook name, function(activation, hook))`."""
        ...

    def check_compatible(self, others: Sequence[Any]) -> None:
        """Raise InterventionError if it cannot run together with `others`."""
        ...


@contextmanager
def intervened(
    model: Any, active: list[SupportsHooks], interventions: Sequence[SupportsHooks]
) -> Iterator[None]:
    """Attach the hooks of `interventions`, run the body, and check that every hook fired.

    A hook counts as missed if a forward reached its block but not the hook. `active` is the
    model's own list of what it runs under; nested contexts see it.

    Raises:
        InterventionError: a conflict, a hook name that the model lacks, or a missed hook.
    """
    already_active = len(active)
    fired: Counter[int] = Counter()
    reached: Counter[str] = Counter()
    try:
        hooks = _activate(model, active, interventions)
        counted = [
            (name, _counting(i, function, fired)) for i, (name, function) in enumerate(hooks)
        ]
        watched = sorted(
            {_marker(name) for name, _ in hooks} | (_every_forward(model) if hooks else set())
        )
        markers = [(name, _marking(name, reached)) for name in watched]
        with model.hooks(fwd_hooks=[*markers, *counted]):
            yield
    finally:
        del active[already_active:]
    for i, (name, _) in enumerate(hooks):
        _check_fired(name, fired[i], reached, interventions)


def _activate(
    model: Any, active: list[SupportsHooks], interventions: Sequence[SupportsHooks]
) -> list[NamedHook]:
    """The hooks of all, in order; each counts the token rows that those before it add."""
    hooks: list[NamedHook] = []
    for intervention in interventions:
        intervention.check_compatible(active)
        hooks += intervention.fwd_hooks(model)
        active.append(intervention)
    _check_names(model, hooks)
    return hooks


def _marker(name: str) -> str:
    """The hook point that every forward reaching `name` has passed."""
    return (
        ".".join([*name.split(".")[:2], "hook_resid_pre"])
        if name.startswith("blocks.")
        else "hook_embed"
    )


def _every_forward(model: Any) -> set[str]:
    """Hook points of which every forward reaches one, also one that starts at a later layer."""
    return {"hook_embed", f"blocks.{model.cfg.n_layers - 1}.hook_resid_pre"}


def _counting(index: int, function: HookFunction, fired: Counter) -> HookFunction:
    def counted(activation: Any, hook: Any) -> Any:
        fired[index] += 1
        return function(activation, hook=hook)

    return counted


def _marking(name: str, reached: Counter) -> HookFunction:
    def mark(activation: Any, hook: Any) -> None:
        reached[name] += 1

    return mark


def _check_names(model: Any, hooks: list[NamedHook]) -> None:
    missing = sorted({name for name, _ in hooks} - set(model.hook_dict))
    if missing:
        raise InterventionError(
            f"{model.cfg.model_name} ({model.cfg.n_layers} blocks) has no hook point {missing[0]}"
            f"{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}. "
            "model.hook_dict lists those it has."
        )


def _check_fired(
    name: str, fired: int, reached: Counter, interventions: Sequence[SupportsHooks]
) -> None:
    if not reached.total():
        raise InterventionError(
            f"No forward pass reached the hooks of {list(interventions)}: either none ran inside "
            "`intervened`, or a compiled copy of the model ran, which does not see hooks. Run the "
            "HookedViT itself."
        )
    after_blocks = name.startswith(
        ("ln_final", "hook_pooled", "hook_out")
    )  # early exits skip these
    if fired != reached[_marker(name)] and not after_blocks:
        raise InterventionError(
            f"The hook of {list(interventions)} on {name} ran {fired} times in "
            f"{reached[_marker(name)]} forward passes: the result is not what the intervention says. "
            "Was reset_hooks() called inside `intervened`?"
        )
