"""Keeps results of the embedded models for the pages of the analyses: words, and small figures.

    for room in paper theory llm; do python -m analyses $room --out OUT/$room; done
    python docs/analyses/collect.py OUT [SCRIPT ...]

Takes every result in OUT/ROOM/SCRIPT, or those of the scripts named, and leaves the others as they are.
"""

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WIDTH, COLORS = 760, 48
"""Of a figure: in pixels, and in its palette."""
LONG = 6000
"""Characters of a result's words that a page has room for."""


def kept(result: dict[str, Any], words: str) -> dict[str, Any]:
    """What a page shows of a result."""
    facts, versions = result["facts"], result["versions"]
    made = [f"{result['seconds']:.0f} s on one core"]
    made += [f"model {facts['model']}"] if "model" in facts else []
    made += [f"images: {facts['images']}"] if "images" in facts else []
    made += [f"{name} {versions[name]}" for name in ("ttreg-interp", "torch")]
    return {
        "headline": result["headline"],
        "words": shown(words.strip()),
        "made": ", ".join(made) + ".",
        "configuration": {key: here(value) for key, value in result["configuration"].items()},
    }


def shown(words: str) -> str:
    """A page tells all of it, or what stands above the first section of a long one."""
    if len(words) <= LONG:
        return words
    return words.partition("\n## ")[0].strip() + "\n\nThe command writes the tables behind this."


def here(value: Any) -> Any:
    """A path inside the repository, from its root."""
    return value.removeprefix(f"{ROOT}/") if isinstance(value, str) else value


def shrink(figure: Path, target: Path) -> None:
    """A figure as a page shows it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(figure) as image:
        flat = image.convert("RGB")
    flat.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
    flat.quantize(COLORS, dither=Image.Dither.NONE).save(target, optimize=True)


def script(name: str) -> Path:
    """Where the script of a result is."""
    return ROOT / "analyses" / f"{name}.py"


def main(out: Path, names: list[str]) -> None:
    """Add to results.json and figures/; what has no script any more goes."""
    store = HERE / "results.json"
    results = json.loads(store.read_text(encoding="utf-8"))
    for file in sorted(out.glob("*/*/result.json")):
        folder, room = file.parent, file.parent.parent.name
        if names and folder.name not in names:
            continue
        words = (folder / "summary.md").read_text(encoding="utf-8")
        result = json.loads(file.read_text(encoding="utf-8"))
        results[f"{room}/{folder.name}"] = kept(result, words)
        pictures = sorted(folder.glob("*.png"))
        if pictures:
            shrink(pictures[0], HERE / "figures" / room / f"{folder.name}.png")
    results = {name: found for name, found in results.items() if script(name).exists()}
    for figure in (HERE / "figures").glob("*/*.png"):
        if f"{figure.parent.name}/{figure.stem}" not in results:
            figure.unlink()
    text = json.dumps(dict(sorted(results.items())), indent=1, ensure_ascii=False)
    store.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
