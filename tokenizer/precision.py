"""The precision of products and convolutions of float32: full where a result must not depend on the batch.

Left out: autocast, which the trainings choose.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch


def full_precision(wanted: bool = True) -> AbstractContextManager[None]:
    """No TF32 and no bf16 in products and convolutions of float32, whatever was chosen for them, which holds
    again afterwards. cuDNN uses TF32 unless it is told not to.

    Nothing while torch.compile traces, which takes such a choice from around the whole, nor if not `wanted`.
    """
    return _full_precision() if wanted and not torch.compiler.is_compiling() else nullcontext()


@contextmanager
def _full_precision() -> Iterator[None]:
    # By the newer of torch's two interfaces, which reads what was set by the older one too; what it has set
    # must be taken back before the older one is asked again.
    backends = torch.backends
    settings = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)  # type: ignore[attr-defined]
    with ExitStack() as restored:
        for setting in settings:
            chosen = setting.fp32_precision
            # "none" is full precision too.
            if chosen not in ("none", "ieee"):
                restored.callback(setattr, setting, "fp32_precision", chosen)
                setting.fp32_precision = "ieee"
        yield
