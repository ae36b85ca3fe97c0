"""The kernel that batch runs notebooks in: IPython's own, but it loses no output and does not outlive its parent."""

import ctypes
import signal
import sys

from ipykernel.kernelapp import IPKernelApp


class LosslessKernel(IPKernelApp):
    def init_iopub(self, context):
        """By itself zmq drops output when a thousand messages wait, as they do when the log is being saved."""
        context.sndhwm = 0
        super().init_iopub(context)


def die_with_parent() -> None:
    """IPython looks for its parent now and then, but cannot while native code holds the GIL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    die_with_parent()
    LosslessKernel.launch_instance()
