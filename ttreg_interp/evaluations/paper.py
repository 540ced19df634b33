"""All evaluations of the paper: which data and weights are here, which are missing, what can run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ttreg_interp.data.annotated import Annotated
from ttreg_interp.data.open import open_data
from ttreg_interp.discovery.distributed import current_shard
from ttreg_interp.errors import DataError, TTRegError
from ttreg_interp.evaluations.weights import weights_at_hand

logger = logging.getLogger("ttreg_interp")

TRAINED = "trained"
"""In the list: the arm that is the same model's checkpoint with trained registers."""
_ON_TEXT = ("text-move", "text-random", "text-erase")


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
    """A published list, or a file of `ttreg find`; None where no arm needs them."""
    arms: tuple[str, ...]
    """Besides the intact model, as `standard_arms` names them."""
    trained: str | None
    """Spec of the checkpoint with trained registers, if that is an arm."""
    options: Mapping[str, Any]
    """Fields of the evaluation."""
    data: Mapping[str, str]
    """FORMAT:PATH#SPLIT by split."""
    missing: tuple[str, ...]
    """What is not here, with how to get it; empty: it can run."""
    left_out: Mapping[str, str]
    """Arms that cannot run, and what each needs."""

    @property
    def folder(self) -> str:
        """Where its records and result go, below the output folder."""
        without = f".without-{'-'.join(self.left_out)}" if self.left_out else ""
        return f"{set_folder(self.table, self.name, self.data)}/{_plain(self.model)}{without}"


@dataclass(frozen=True)
class Choice:
    """What `ttreg eval paper` is given besides data."""

    models: tuple[str, ...] = ()
    """Names of the paper's list, or specs, which take part in every evaluation; empty: each
    evaluation's own models."""
    neurons: str | None = None
    """A file of `ttreg find`, or a published list, for `models`."""
    trained: str | None = None
    """Spec of a checkpoint with trained registers, as one more arm of `models`."""
    fit: Path | None = None
    """Images on which the arm 'bias' measures k' and v'."""


def set_folder(table: str, name: str, data: Mapping[str, str]) -> str:
    """Where results of one evaluation on one set go: `table5/lost-voc2007`."""
    sets = "-".join(dict.fromkeys(spec.partition(":")[0] for spec in data.values()))
    return f"table{table.partition(',')[0]}/{name}-{sets}"


def _plain(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in ".-" else "_" for sign in name)


@cache
def paper_list() -> dict[str, Any]:
    """The YAML file of the package: models, data, evaluations."""
    import yaml

    text = (files("ttreg_interp.evaluations") / "paper.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def jobs(root: Path, choice: Choice | None = None) -> list[Job]:
    """Every evaluation of the paper, and what it lacks on this machine.

    Args:
        root: folder that holds the data sets.
        choice: models of one's own, and what their arms need.

    Returns:
        In the order of the tables.

    Raises:
        DataError: a root or folder to fit on that is not there, or a name that is neither in the
            list nor a spec.
    """
    choice = choice or Choice()
    for folder in filter(None, (root, choice.fit)):
        if not folder.exists():
            raise DataError(f"{folder} is no folder. Give one that holds the data sets or images.")
    listed = paper_list()
    if unknown := [m for m in choice.models if m not in listed["models"] and ":" not in m]:
        raise DataError(
            f"{unknown} is neither a model of the paper ({', '.join(listed['models'])}) nor a spec "
            "SOURCE:NAME."
        )
    lacking = {name: _lacking(root, entry) for name, entry in listed["data"].items()}
    return [
        _job(root, entry, model, lacking, choice)
        for entry in listed["evaluations"]
        for model in choice.models or entry["models"]
        if model not in listed["models"] or model in _models(entry)
    ]


def _models(entry: Mapping[str, Any]) -> list[str]:
    """Of the list; those with trained registers too, which run as they are when they are named."""
    known = paper_list()["models"]
    return [*entry["models"], *(known[m][TRAINED] for m in entry["models"] if TRAINED in known[m])]


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
    choice: Choice,
) -> Job:
    models = paper_list()["models"]
    known = models.get(model, {"spec": model, "get": "check the spec"})
    missing = [text for name in dict.fromkeys(entry["data"].values()) if (text := lacking[name])]
    if not weights_at_hand(known["spec"]):
        missing.append(f"no weights of {known['spec']}. Get them: {known['get']}")
    has_registers = model in {one.get(TRAINED) for one in models.values()}
    arms = [] if has_registers else [arm for arm in entry["arms"] if arm != TRAINED]
    own = choice.neurons if model in choice.models and choice.neurons else known.get("neurons")
    if arms and own is None:
        missing.append(
            f"no register neurons of {model}. Find them: ttreg find {known['spec']} --images FOLDER "
            f"--out neurons.json; then: --models {model} --neurons neurons.json"
        )
    trained = choice.trained or models.get(known.get(TRAINED), {}).get("spec")
    whole = Job(
        table=entry["table"],
        name=entry["name"],
        model=model,
        spec=known["spec"],
        neurons=own if arms else None,
        arms=tuple(arms),
        trained=trained if TRAINED in entry["arms"] else None,
        options=entry.get("options", {}),
        data={
            split: _placed(root, listed_data(name)["spec"]) for split, name in entry["data"].items()
        },
        missing=tuple(missing),
        left_out={},
    )
    return whole if missing else _with_what_is_here(whole, choice)


def listed_data(name: str) -> dict[str, str]:
    """A data set of the list."""
    return paper_list()["data"][name]


def _with_what_is_here(job: Job, choice: Choice) -> Job:
    """Without the arms that cannot run."""
    left_out = {}
    if "bias" in job.arms and choice.fit is None:
        left_out["bias"] = (
            "k' and v' are measured on images of their own: --fit FOLDER, other images than those "
            "evaluated"
        )
    if job.trained is not None and not weights_at_hand(job.trained):
        left_out[TRAINED] = f"no weights of {job.trained}; get them: {_how_to_get(job.trained)}"
    on_text = [arm for arm in job.arms if arm in _ON_TEXT]
    if on_text and not _marked(job):
        mark = "the images have no mark of where the text stands: areas/NAME.png, white on black"
        left_out |= dict.fromkeys(on_text, mark)
    return replace(
        job,
        arms=tuple(arm for arm in job.arms if arm not in left_out),
        trained=None if TRAINED in left_out else job.trained,
        left_out=left_out,
    )


def _how_to_get(spec: str) -> str:
    known = [one for one in paper_list()["models"].values() if one["spec"] == spec]
    return known[0]["get"] if known else "check the spec"


def _marked(job: Job) -> bool:
    """Whether the first image that can be read says where its text stands."""
    for item in open_data(job.data["test"]).items:
        try:
            return item.read()[1].area is not None
        except DataError:
            continue  # the evaluation counts it
    return False


def survey(found: Sequence[Job]) -> str:
    """What can run, what cannot, and what to get, as Markdown."""
    lines = ["| table | evaluation | model | state |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {job.table} | {job.name} ({', '.join(s.partition(':')[0] for s in job.data.values())}) "
        f"| {job.model} | {_state(job)} |"
        for job in found
    ]
    needs = list(dict.fromkeys(text for job in found for text in job.missing))
    ready = sum(not job.missing for job in found)
    lines += ["", f"{ready} of {len(found)} can run.", *left_out_lines(found)]
    lines += ["", "Missing:", *(f"- {text}" for text in needs)] if needs else []
    return "\n".join(lines)


def _state(job: Job) -> str:
    if job.missing:
        return f"{len(job.missing)} missing"
    return f"ready, without {', '.join(job.left_out)}" if job.left_out else "ready"


def left_out_lines(found: Sequence[Job]) -> list[str]:
    """Arms that are left out of jobs that can run, counted, and what each needs."""
    reasons: dict[tuple[str, str], int] = {}
    for job in found:
        for arm, reason in job.left_out.items():
            reasons[arm, reason] = reasons.get((arm, reason), 0) + 1
    lines = [
        f"- {arm}, in {count} evaluation{'s' if count > 1 else ''}: {reason}"
        for (arm, reason), count in reasons.items()
    ]
    total = sum(reasons.values())
    return ["", f"Arms left out: {total}.", *lines] if lines else []


def run_all(found: Sequence[Job], run: Callable[[Job], None]) -> dict[str, str]:
    """Run what can run; an error ends its own job alone.

    Under torchrun an error is passed on: the other processes would wait for this one's share.

    Args:
        found: of `jobs`.
        run: runs one job.

    Returns:
        Folder -> error of those that failed.
    """
    failed = {}
    for job in found:
        if job.missing:
            continue
        try:
            run(job)
        except Exception as error:  # out of memory, a bug: the other jobs are not to pay for it
            if current_shard().of > 1:
                raise
            known = isinstance(error, TTRegError)
            failed[job.folder] = str(error) if known else f"{type(error).__name__}: {error}"
            logger.error("failed: %s: %s", job.folder, failed[job.folder], exc_info=not known)
    return failed


def opened(job: Job, limit: int | None = None) -> dict[str, Annotated[Any]]:
    """The image sets of a job, by split."""
    return {split: open_data(spec).take(limit) for split, spec in job.data.items()}
