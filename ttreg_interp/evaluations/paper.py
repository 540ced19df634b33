"""All evaluations of the paper: which data and weights are here, which are missing, what can run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ttreg_interp.data.annotated import Annotated
from ttreg_interp.data.open import open_data
from ttreg_interp.errors import DataError, TTRegError
from ttreg_interp.evaluations.weights import weights_at_hand


@dataclass(frozen=True)
class Job:
    """One evaluation of one model."""

    table: str
    """In the paper."""
    name: str
    """The evaluation, as `EVALUATIONS` names it."""
    model: str
    """A name of the paper's list, or a spec."""
    spec: str
    """Of the model."""
    neurons: str | None
    """A published list; None: give a file of `ttreg find`."""
    arms: tuple[str, ...]
    """Besides the intact model."""
    options: Mapping[str, Any]
    """Fields of the evaluation."""
    data: Mapping[str, str]
    """FORMAT:PATH#SPLIT by split."""
    missing: tuple[str, ...]
    """What is not here, with how to get it; empty: it can run."""

    @property
    def folder(self) -> str:
        """Where its records and result go, below the output folder."""
        sets = "-".join(spec.partition(":")[0] for spec in dict.fromkeys(self.data.values()))
        model = "".join(sign if sign.isalnum() or sign in ".-" else "_" for sign in self.model)
        return f"table{self.table.partition(',')[0]}/{self.name}-{sets}/{model}"


@cache
def paper_list() -> dict[str, Any]:
    """The YAML file of the package: models, data, evaluations."""
    import yaml

    text = (files("ttreg_interp.evaluations") / "paper.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def jobs(
    root: Path, models: Sequence[str] = (), neurons: Mapping[str, str] | None = None
) -> list[Job]:
    """Every evaluation of the paper, and what it lacks on this machine.

    Args:
        root: folder that holds the data sets.
        models: names of the paper's list, or specs, which take part in every evaluation. Default:
            each evaluation's own models.
        neurons: neuron files by model, for models without a published list.

    Returns:
        In the order of the tables.

    Raises:
        DataError: a root that is not there, or a name that is neither in the list nor a spec.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder. Give the one that holds the data sets.")
    listed = paper_list()
    if unknown := [one for one in models if one not in listed["models"] and ":" not in one]:
        raise DataError(
            f"{unknown} is neither a model of the paper ({', '.join(listed['models'])}) nor a spec "
            "SOURCE:NAME."
        )
    lacking = {name: _lacking(root, entry) for name, entry in listed["data"].items()}
    found = []
    for entry in listed["evaluations"]:
        for model in models or entry["models"]:
            if model in listed["models"] and model not in entry["models"]:
                continue
            found.append(_job(root, entry, model, lacking, dict(neurons or {})))
    return found


def _lacking(root: Path, entry: Mapping[str, str]) -> str | None:
    """None where the set can be opened; else what is wrong and how to get it."""
    try:
        open_data(_placed(root, entry["spec"]))
    except TTRegError as error:
        return f"{str(error).splitlines()[0]} Get it: {entry['get']}"
    return None


def _placed(root: Path, spec: str) -> str:
    kind, _, place = spec.partition(":")
    return f"{kind}:{root / place}"


def _job(
    root: Path,
    entry: Mapping[str, Any],
    model: str,
    lacking: Mapping[str, str | None],
    neurons: Mapping[str, str],
) -> Job:
    listed = paper_list()
    known = listed["models"].get(model, {"spec": model, "get": "check the spec"})
    missing = [text for name in dict.fromkeys(entry["data"].values()) if (text := lacking[name])]
    if not weights_at_hand(known["spec"]):
        missing.append(f"no weights of {known['spec']}. Get them: {known['get']}")
    own = neurons.get(model, known.get("neurons"))
    arms = tuple(entry["arms"]) if not model.endswith("-registers") else ()
    if arms and own is None:
        missing.append(f"no register neurons of {model}. Find them: ttreg find {known['spec']} ...")
    return Job(
        table=entry["table"],
        name=entry["name"],
        model=model,
        spec=known["spec"],
        neurons=own if arms else None,
        arms=arms,
        options=entry.get("options", {}),
        data={
            split: _placed(root, listed["data"][name]["spec"])
            for split, name in entry["data"].items()
        },
        missing=tuple(missing),
    )


def survey(found: Sequence[Job]) -> str:
    """What can run, what cannot, and what to get, as Markdown."""
    lines = ["| table | evaluation | model | state |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {job.table} | {job.name} ({', '.join(s.partition(':')[0] for s in job.data.values())}) "
        f"| {job.model} | {'ready' if not job.missing else f'{len(job.missing)} missing'} |"
        for job in found
    ]
    needs = list(dict.fromkeys(text for job in found for text in job.missing))
    ready = sum(not job.missing for job in found)
    lines += ["", f"{ready} of {len(found)} can run."]
    lines += ["", "Missing:", *(f"- {text}" for text in needs)] if needs else []
    return "\n".join(lines)


def opened(job: Job, limit: int | None = None) -> dict[str, Annotated[Any]]:
    """The image sets of a job, by split."""
    return {split: open_data(spec).take(limit) for split, spec in job.data.items()}
