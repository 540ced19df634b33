"""CircuitsVis' view of one layer's attention, head by head, in a file that needs no network."""

from html import escape
from pathlib import Path
from string import Template

from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import DataError, LayoutError
from ttreg_interp.hooked import TokenLayout
from ttreg_interp.report.blocks import TokenBlocks
from ttreg_interp.report.run import write_whole

MOST_TOKENS = 70
"""More rows and columns than that are too small to read or to point at."""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<title>$title</title>
<style>body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 24px auto; padding: 0 16px; }</style>
</head>
<body>
<h1>$title</h1>
<p>Rows are queries, columns are keys. $blocks</p>
$view
</body>
</html>
""")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_attention_view(
    pattern: Float[Tensor, "head query key"],
    layout: TokenLayout,
    path: Path | str,
    *,
    side: int | None = None,
    title: str = "Attention by head",
) -> Path:
    """Write the attention of one image in one layer as an HTML file to point at.

    Patches are taken together in square blocks: queries by their mean, keys by their sum. The keys
    of an attention bias are left out.

    Args:
        pattern: `cache["pattern", layer][image]`.
        layout: `cache.layout`.
        path: the file to write.
        side: patches along one side of a block; default: as few as keep at most `MOST_TOKENS` rows.
        title: heading of the page.

    Returns:
        The file.

    Raises:
        DataError: CircuitsVis is not installed.
        LayoutError: the pattern is not one of this layout.

    Example:
        >>> import tempfile, torch, ttreg_interp as tt
        >>> model = tt.load("timm:test_vit?random")
        >>> _, cache = model.run_with_cache(torch.zeros(1, 3, 160, 160))
        >>> file = Path(tempfile.mkdtemp()) / "attention.html"
        >>> write_attention_view(cache["pattern", 5][0], cache.layout, file).name
        'attention.html'
    """
    if pattern.shape[1] != layout.n_tokens or pattern.shape[2] < layout.n_tokens:
        raise LayoutError(
            f"A pattern of shape {list(pattern.shape)} [head, query, key] does not fit a layout of "
            f"{layout.n_tokens} tokens. Pass cache['pattern', layer][image] and cache.layout."
        )
    blocks = _blocks(layout, side)
    tokens = pattern[:, :, -layout.n_tokens :].detach().float().cpu()
    coarse = blocks.sum(blocks.mean(tokens.transpose(1, 2)).transpose(1, 2))
    page = _PAGE.substitute(
        policy=_POLICY,
        title=escape(title),
        blocks=f"Patches are taken together in blocks of {blocks.side} × {blocks.side}."
        if blocks.side > 1
        else "",
        view=_view(coarse, _names(blocks)),
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, page)
    return target


def _blocks(layout: TokenLayout, side: int | None) -> TokenBlocks:
    if side is not None:
        return TokenBlocks(layout, side)
    sides = range(1, max(layout.height, layout.width) + 1)
    fine = (blocks for blocks in (TokenBlocks(layout, s) for s in sides))
    return next(
        (one for one in fine if one.n_rows <= MOST_TOKENS), TokenBlocks(layout, sides.stop - 1)
    )


def _names(blocks: TokenBlocks) -> list[str]:
    """Prefix tokens by name, blocks by the patch in their upper left corner."""
    rows, columns = blocks.grid
    corners = [
        f"{row * blocks.side},{column * blocks.side}"
        for row in range(rows)
        for column in range(columns)
    ]
    return [*blocks.layout.row_names()[: blocks.layout.patches.start], *corners]


def _view(coarse: Float[Tensor, "head query key"], names: list[str]) -> str:
    try:
        from circuitsvis.attention import attention_heads
    except ModuleNotFoundError as missing:
        raise DataError(
            "This view needs CircuitsVis. Install it with: pip install 'ttreg-interp[attention]'"
        ) from missing
    view = attention_heads(
        attention=coarse,
        tokens=names,
        attention_head_names=[f"head {head}" for head in range(len(coarse))],
        max_value=float(coarse.max()),
        mask_upper_tri=False,
    )
    # str(view) would load the scripts from a server; these are inside the package.
    return view.local_src
