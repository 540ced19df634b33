"""Programs and ONNX files of a model under an intervention."""

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ttreg_interp.deploy.check import OUTPUTS, Run, check_equal, noise
from ttreg_interp.deploy.files import draft_folder, provenance
from ttreg_interp.deploy.frozen import freeze
from ttreg_interp.errors import ArtifactError, InterventionError, TTRegError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.vit import ReturnType
from ttreg_interp.interventions import Intervention

TRACED_BATCH, OTHER_BATCH = 2, 3
"""Images that a program is traced with, and that one for any number is checked with."""


def export(
    model: HookedViT,
    intervention: Intervention,
    path: str | Path,
    return_type: ReturnType = "output",
    dynamic_batch: bool = True,
) -> Path:
    """Write the model under an intervention as a `torch.export` program (`.pt2`).

    It runs without this package: `torch.export.load(path).module()(pixels)`. Pixels are preprocessed
    images of the model's own size; test-time registers are not among the tokens. The file also holds
    a `provenance.json` (`extra_files` of `torch.export.load`).

    Args:
        model: any HookedViT; it is left as it is.
        intervention: what to do.
        path: file to write.
        return_type: 'output', 'tokens' or 'both', as in the forward of HookedViT.
        dynamic_batch: whether it takes any number of images; otherwise 2.

    Returns:
        The path.

    Raises:
        InterventionError: the intervention does not fit the model, cannot be traced, or the program
            that was written returns something else than the hooked model does.
        ArtifactError: no such folder.

    Example:
        >>> import tempfile
        >>> from ttreg_interp.hooked import load
        >>> from ttreg_interp.interventions import TestTimeRegister
        >>> clean = TestTimeRegister({3: [7]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export(load("timm:test_vit?random"), clean, f"{folder}/clean.pt2")
        ...     torch.export.load(path).module()(torch.zeros(5, 3, 160, 160)).shape
        torch.Size([5, 1000])
    """
    target = Path(path)
    with draft_folder(target) as folder, _quiet():
        program = _traced(model, intervention, return_type, dynamic_batch)
        extra_files = {"provenance.json": json.dumps(provenance(model, intervention))}
        torch.export.save(program, folder / target.name, extra_files=extra_files)
        run = _program_runner(folder / target.name)
        check_equal(run, model, intervention, return_type, _other_batch(dynamic_batch))
        (folder / target.name).replace(target)
    return target


def to_onnx(
    model: HookedViT,
    intervention: Intervention,
    path: str | Path,
    return_type: ReturnType = "output",
    dynamic_batch: bool = True,
) -> Path:
    """Write the model under an intervention as ONNX, and check the file in onnxruntime.

    Input `pixels` [batch, channel, height, width], preprocessed, of the model's own size; outputs
    `output` and `tokens`, as `return_type` says. The metadata hold a `provenance` document. Weights
    above 1.8 GB go to a second file, `path` + `.data`.

    Args:
        model: any HookedViT; it is left as it is.
        intervention: what to do.
        path: file to write.
        return_type: 'output', 'tokens' or 'both', as in the forward of HookedViT.
        dynamic_batch: whether it takes any number of images; otherwise 2.

    Returns:
        The path.

    Raises:
        InterventionError: the intervention does not fit the model, cannot be traced, or onnxruntime
            returns something else than the hooked model does.
        ArtifactError: no such folder, or a package that ONNX needs is missing.
    """
    target = Path(path)
    _require("onnx", "onnxscript", "onnxruntime")
    with draft_folder(target) as folder, _quiet():
        program = torch.onnx.export(
            _traced(model, intervention, return_type, dynamic_batch),
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            output_names=list(OUTPUTS[return_type]),
            dynamic_shapes={"pixels": {0: "batch"}} if dynamic_batch else None,  # names the axis
        )
        assert program is not None  # dynamo=True always returns one
        document = json.dumps(provenance(model, intervention))
        program.model.metadata_props["provenance"] = document
        program.save(folder / target.name)
        run = _onnx_runner(folder / target.name)
        check_equal(run, model, intervention, return_type, _other_batch(dynamic_batch))
        for written in sorted(folder.iterdir(), reverse=True):  # a file of weights before the model
            written.replace(target.parent / written.name)
    return target


class _Frozen(nn.Module):
    """What is traced: a copy of the model with the intervention in it, and one return type."""

    def __init__(self, model: HookedViT, intervention: Intervention, return_type: ReturnType):
        super().__init__()
        self.model = freeze(copy.deepcopy(model), intervention)
        self.return_type = return_type

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.model(pixels, self.return_type)


def _traced(
    model: HookedViT, intervention: Intervention, return_type: ReturnType, dynamic_batch: bool
) -> torch.export.ExportedProgram:
    module = _Frozen(model, intervention, return_type).eval()
    shapes = {"pixels": {0: torch.export.Dim("batch")}} if dynamic_batch else None
    try:
        # Only the strict tracer keeps len(tokens), which sources write, a dynamic number.
        return torch.export.export(
            module, (noise(model, TRACED_BATCH),), dynamic_shapes=shapes, strict=True
        )
    except TTRegError:
        raise
    except Exception as error:  # tracers raise many classes, most of them private
        root = error
        while root.__cause__ is not None:
            root = root.__cause__
        reason = f"{type(root).__name__}: {root}".partition("\n")[0]
        raise InterventionError(
            f"{intervention} cannot be traced into a program ({reason}). Decisions on values stop a "
            "tracer, and targets for every image of a batch fix its size; model.intervened and tt.bake "
            "run such an intervention."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without two warnings about attention biases, of which the check of the file takes care.

    A bias notes how many keys it found, anew in every forward; and the keys of its layers are views
    of one tensor.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*side effects happened in the model.forward")
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        yield


def _other_batch(dynamic_batch: bool) -> int:
    return OTHER_BATCH if dynamic_batch else TRACED_BATCH


def _program_runner(path: Path) -> Run:
    run = torch.export.load(path).module()

    def outputs(pixels: Tensor) -> Sequence[Tensor]:
        output = run(pixels)
        return output if isinstance(output, tuple) else (output,)

    return outputs


def _onnx_runner(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: [
        torch.from_numpy(array) for array in session.run(None, {"pixels": pixels.cpu().numpy()})
    ]


def _require(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ArtifactError(
            f"ONNX files need {', '.join(missing)}: pip install 'ttreg-interp[export]'."
        )
