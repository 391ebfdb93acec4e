"""One thread: with several, how sums are split, and so their last bit, can differ from call to call."""

import torch

torch.set_num_threads(1)
