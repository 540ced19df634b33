"""`ttreg verify`: does HookedViT compute what the source computes, and is every hook causal?"""

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from ttreg_interp.cli.common import emit, table


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check models: parity with the source, identity and causality of every hook point, patterns,
    weights, layout. Exit status 1 if any check fails."""

    models: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL [MODEL ...]")
    ]
    """One or more model specs; `?random` makes one of random weights, without a download."""
    device: str | None = None
    """cpu, cuda, ... Default: cuda where there is one."""
    image_size: int | None = None
    """Another resolution in pixels, where the models take it."""
    seed: int = 0
    """Of the noise images and of the overwrites."""
    markdown: bool = False
    """Print one Markdown table (this makes the model table of the docs)."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Verify each model in turn."""
        import torch

        from ttreg_interp.hooked import load, verify

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        models = (load(spec, device=device, image_size=self.image_size) for spec in self.models)
        results = [verify(model, seed=self.seed) for model in models]
        tables = [_markdown(results)] if self.markdown else [_checks(result) for result in results]
        emit({"models": [result.to_dict() for result in results]}, self.json, *tables)
        return 0 if all(result.passed for result in results) else 1


def _checks(result: Any) -> Any:
    checks = table(f"{result.model} ({result.family})", "check", "holds", "found")
    checks.columns[2].justify = "left"
    for check in result.checks:
        checks.add_row(check.name, "yes" if check.passed else "NO", check.detail)
    return checks


def _markdown(results: list[Any]) -> str:
    lines = [
        "| model | class | error against the source | hook points, all causal | a hidden token changes |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        causal = next(check for check in result.checks if check.name == "causality").passed
        lines.append(
            f"| `{result.model}` | {result.family} | {result.error('parity'):.1e} "
            f"| {result.n_hook_points} {'yes' if causal else 'NO'} | {result.error('hidden token'):.1e} |"
        )
    return "\n".join(lines)
