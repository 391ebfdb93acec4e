"""Silences the notices that torchrec and fbgemm give their own developers at import; nothing else."""

import logging
import warnings


def quiet_imports() -> None:
    """Call before torchrec is imported, in every process of the command line."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # torchrec asks is_fx_tracing()
    logging.getLogger("torchrec").setLevel(logging.ERROR)  # its planner asks for a factory of topologies
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="fbgemm_gpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torchrec")
    # torchrec calls older names of torch; its ShardedTensors will be DTensors some day
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", "Please use DTensor", category=FutureWarning)
