"""`ttreg eval`: what a register is worth downstream, arm by arm, in the paper's tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ttreg_interp.cli.common import counting, emit
from ttreg_interp.errors import DataError

PAPER = "paper"
TRAINED_ARM = "trained registers"
"""The row of a checkpoint with trained registers."""


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Evaluate a model with and without a register: classification, zero-shot, lost,
    attention-segmentation, probes, typographic attacks; or 'paper' for all tables of the paper.

    A run that was killed goes on where it stopped; torchrun shards it. Writes result.json, table.md
    and table.tex."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Which evaluation; an unknown name lists them all."""
    models: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--model"])] = ()
    """SOURCE:NAME, as in the other commands; for 'paper' several."""
    data: str
    """FORMAT:PATH or FORMAT:PATH#SPLIT, e.g. voc2007:/data, coco:/data/coco#val2017; for 'paper' the
    folder that holds the data sets."""
    out: Path
    """Folder for records and results; made if missing."""
    train: str | None = None
    """Training images of a probe, FORMAT:PATH#SPLIT. Default: --data, by cross-validation."""
    neurons: Path | None = None
    """A neuron file from `ttreg find`, or a published list; needed by every arm below."""
    arms: tuple[str, ...] = ("register", "zero", "bias", "random")
    """Arms besides the intact model; --arms without names for that alone."""
    trained: str | None = None
    """SOURCE:NAME of a checkpoint with trained registers, as one more arm."""
    fit: Path | None = None
    """Images on which the arm 'bias' measures k' and v'; others than those evaluated."""
    n_draws: int = 20
    """Draws of each random control."""
    set: tuple[str, ...] = ()
    """Fields of the evaluation, KEY=VALUE, e.g. --set 'biases=[0,-0.5]' k=100."""
    limit: int | None = None
    """Use at most so many images."""
    image_size: int | None = None
    """Another resolution in pixels, where the model can interpolate its position embeddings."""
    batch_size: int = 16
    """Images of one forward pass."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: cuda where there is one."""
    seed: int = 0
    """Of control draws and bootstrap."""
    dry_run: bool = False
    """With 'paper': say only what is here and what is missing."""
    force: bool = False
    """Use neurons that were found on other weights (another hash)."""
    json: bool = False
    """Print the result as one JSON document."""

    def run(self) -> int:
        """Evaluate, write, print."""
        from ttreg_interp.discovery.distributed import current_shard, torchrun

        if self.name == PAPER:
            with torchrun():
                return self._paper()
        with torchrun():
            result = self._result()
            if current_shard().number == 0:
                result.save(self.out)
                emit(result.to_dict(), self.json, f"{result}\nresults in {self.out}")
        return 0

    def _result(self) -> Any:
        from ttreg_interp.data.open import open_data
        from ttreg_interp.evaluations.catalogue import evaluation_of, options_of
        from ttreg_interp.evaluations.run import evaluate

        evaluation = evaluation_of(self.name, options_of(self.set))
        if len(self.models) != 1:
            raise DataError(f"Found {len(self.models)} models; `ttreg eval {self.name}` takes one.")
        model = self._load(self.models[0])
        data = {"test": open_data(self.data).take(self.limit)}
        if self.train is not None:
            data["train"] = open_data(self.train).take(self.limit)
        total = sum(len(images) for images in data.values())
        with counting(total, self.name) as progress:
            return evaluate(
                evaluation,
                model,
                data,
                self._arms(model),
                self.out,
                self.batch_size,
                self.seed,
                progress,
            )

    def _paper(self) -> int:
        """Say what is here and what is missing; run what can be run; print the paper's tables."""
        from ttreg_interp.discovery.distributed import current_shard
        from ttreg_interp.evaluations.paper import run_all, survey

        found = self._jobs()
        ready = [job for job in found if not job.missing]
        first = current_shard().number == 0
        if first and not self.json:
            _say(survey(found))
        if self.dry_run:
            if first and self.json:
                emit({"jobs": [vars(job) for job in found]}, True)
            return 0 if ready else 1
        results: dict[str, Any] = {}

        def run(job: Any) -> None:
            result = self._job(job)
            results[job.folder] = result.to_dict()
            if first:
                result.save(self.out / job.folder)
            if first and not self.json:
                _say(
                    f"\nTable {job.table}, {job.model}: {result}\nresults in {self.out / job.folder}"
                )

        failed = run_all(ready, run)
        if first:
            report = self._report(found, failed)
            body = {"jobs": [vars(job) for job in found], "results": results, "failed": failed}
            emit(body, self.json, *([] if self.json else [report]))
        return 1 if failed or not ready else 0

    def _jobs(self) -> list[Any]:
        from ttreg_interp.evaluations.paper import Choice, jobs

        for name in ("set", "train"):
            if getattr(self, name):
                raise DataError(
                    f"`ttreg eval paper` takes its protocols from the paper's list; --{name} belongs "
                    "to a single evaluation."
                )
        own = {"--neurons": self.neurons, "--trained": self.trained}
        if not self.models and (given := [name for name, value in own.items() if value]):
            raise DataError(f"{' and '.join(given)}: of which model? Name it with --models.")
        neurons = None if self.neurons is None else str(self.neurons)
        return jobs(Path(self.data), Choice(self.models, neurons, self.trained, self.fit))

    def _report(self, found: list[Any], failed: dict[str, str]) -> str:
        """Write the report of all results in the folder."""
        from ttreg_interp.evaluations.paper_report import ending, save, tables

        made = tables(self.out)
        if not made:
            return ending(found, failed)
        where = f"\n\nreport in {self.out / 'report.md'} and {self.out / 'report.tex'}"
        return save(made, ending(found, failed), self.out) + where

    def _job(self, job: Any) -> Any:
        from ttreg_interp.evaluations.arms import standard_arms
        from ttreg_interp.evaluations.catalogue import evaluation_of
        from ttreg_interp.evaluations.paper import opened
        from ttreg_interp.evaluations.run import evaluate

        model = self._load(job.spec)
        arms: dict[str, Any] = {}
        if job.arms:
            neurons = self._neurons(model, job.neurons)
            fit = self._fit(model, job.arms)
            arms |= standard_arms(model, neurons, job.arms, fit, self.n_draws, self.seed)
        if job.trained is not None:
            arms[TRAINED_ARM] = self._load(job.trained)
        evaluation, data = evaluation_of(job.name, job.options), opened(job, self.limit)
        total = sum(map(len, data.values()))
        with counting(total, f"{job.name}, {job.model}") as progress:
            folder = self.out / job.folder
            return evaluate(
                evaluation, model, data, arms, folder, self.batch_size, self.seed, progress
            )

    def _load(self, spec: str) -> Any:
        import torch

        from ttreg_interp.hooked import load

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = load(spec, image_size=self.image_size, device=device)
        _ = model.image_size  # a language model says here what to use instead
        return model

    def _arms(self, model: Any) -> dict[str, Any]:
        """The arms besides the intact model."""
        from ttreg_interp.evaluations.arms import standard_arms

        arms: dict[str, Any] = {}
        if self.arms and self.neurons is None:
            raise DataError(
                f"The arms {', '.join(self.arms)} need register neurons: --neurons FILE of `ttreg "
                "find`, or a published list. For the intact model alone: --arms without names."
            )
        if self.arms:
            arms |= standard_arms(
                model,
                self._neurons(model, str(self.neurons)),
                self.arms,
                self._fit(model, self.arms),
                self.n_draws,
                self.seed,
            )
        if self.trained is not None:
            arms[TRAINED_ARM] = self._load(self.trained)
        return arms

    def _neurons(self, model: Any, source: str) -> Any:
        """From a file, or from a published list."""
        from ttreg_interp.discovery import RegisterNeurons
        from ttreg_interp.discovery.published import published_lists, read_published

        listed = source in published_lists()
        found = read_published(source) if listed else RegisterNeurons.load(source)
        found.check_model(model, strict=not (self.force or listed))
        return found

    def _fit(self, model: Any, arms: tuple[str, ...]) -> list[Any]:
        if "bias" not in arms:
            return []
        if self.fit is None:
            raise DataError(
                "The arm 'bias' measures k' and v' on images of its own: --fit FOLDER, other images "
                "than those evaluated."
            )
        from ttreg_interp.data.images import images

        device, dtype = model.cfg.device, model.cfg.dtype
        batches = images(self.fit).batches(model.preprocess, self.batch_size)
        return [batch.pixels.to(device, dtype) for batch in batches]


def _say(text: str) -> None:
    """On standard output."""
    emit({}, False, text)
