"""The kernel batch runs notebooks in: IPython's own, but it loses no output and ends in order, or with its parent."""

import atexit
import ctypes
import signal
import sys

from ipykernel.kernelapp import IPKernelApp


class LosslessKernel(IPKernelApp):
    def init_iopub(self, context):
        """By itself zmq drops output when a thousand messages wait, as they do when the log is being saved."""
        context.sndhwm = 0
        super().init_iopub(context)
        atexit.register(self.end_control)

    def end_control(self):
        """End the thread that heard the order to end before the thread through which it tells of that.

        IPython ends them the other way round, and zmq aborts when a socket is closed while somebody sends by it.
        """
        if self.control_thread.is_alive():
            self.control_thread.stop()
            self.control_thread.join()


def die_with_parent() -> None:
    """IPython looks for its parent now and then, but cannot while native code holds the GIL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    die_with_parent()
    LosslessKernel.launch_instance()
