"""The request ranker in ONNX Runtime: what a user might pick instead of AOTInductor, to compare with."""

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from serving.scoring.compile import dynamic_axes, traced_inputs
from serving.scoring.ranker_scorer import Program
from serving.scoring.request_ranker import RequestRanker


def export_onnx(module: RequestRanker, tables: list[Tensor], path: Path) -> None:
    """Write the module as ONNX, tables being inputs; `tables` as for `compile_ranker`, for their types."""
    shape = module.shape
    exported = torch.onnx.export(
        module,
        tuple(traced_inputs(shape, tables)),
        dynamo=True,
        dynamic_shapes=(dynamic_axes(shape),),
        input_names=list(shape.inputs),
        output_names=["probability"],
        verbose=False,
    )
    assert exported is not None
    exported.save(str(path))


def open_onnx(path: Path) -> Program:
    """The exported ranker on one thread, as a program for `RankerScorer`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(inputs: list[Tensor]) -> Tensor:
        # Arrays over the same memory; the product vectors are copied by nobody.
        fed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return run
