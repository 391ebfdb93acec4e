"""Checkpoints of several ranks: every rank writes what it holds, any number of them reads it.

FOLDER/tensors/          torch.distributed.checkpoint: weights and both optimizers
       progress.json checksums.json
The folder is whole or absent, as that of one process is.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from embeddings.training.checkpoint import Checkpoint, CheckpointError, fill_checkpoint, new_checkpoint
from embeddings.training.ranks import Ranks, decided_by_first

TENSORS = "tensors"


def add_sharded_checkpoint(
    folder: Path, name: str, tensors: dict[str, Tensor], progress: dict[str, Any], *, keep: int, ranks: Ranks
) -> None:
    """Write `folder`/`name` (step-…) and delete all but the newest `keep`. All ranks call it.

    Raises:
        CheckpointError: a rank could not write; the checkpoints that were there are untouched.
    """
    with ExitStack() as stack:
        temporary = decided_by_first(
            ranks, lambda: stack.enter_context(new_checkpoint(folder, name, keep=keep))
        )
        try:
            save(dict(tensors), checkpoint_id=temporary / TENSORS)
        except CheckpointException as error:  # not an Exception
            raise CheckpointError(f"{folder / name} could not be written: {_first_cause(error)}") from error

        def finish() -> None:
            fill_checkpoint(temporary, Checkpoint({}, progress))
            stack.close()

        decided_by_first(ranks, finish)


def load_sharded_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Read a checkpoint into tensors, in place: of each, this rank's part. All ranks call it.

    Raises:
        CheckpointError: it is damaged, or lacks one of them.
    """
    try:
        load(dict(tensors), checkpoint_id=folder / TENSORS)
    except CheckpointException as error:
        raise CheckpointError(
            f"{folder} cannot be read: {_first_cause(error)}; delete it to resume from an older checkpoint, "
            "or train again"
        ) from error


def _first_cause(error: CheckpointException) -> str:
    rank, (cause, _) = next(iter(sorted(error.failures.items())))
    return f"rank {rank}: {str(cause).strip().partition(chr(10))[0] or type(cause).__name__}"
