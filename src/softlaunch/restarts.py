"""Starting again under the same launcher (`--max_restarts`)."""

import os
import socket
from datetime import timedelta

_TIMEOUT = timedelta(minutes=10)


def meet_anew() -> None:
    """Let the processes of a further try find each other in a store of their own; all of them call it first.

    torch's launcher hands every try the store of the one before (pytorch/pytorch#135712): now and then a process reads
    the address of one that is dead, and the try fails with "Connection refused". Tries are counted by each node for
    itself, so this is for runs on one; on several, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is torch's own way.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if attempt == "0" or not shares_store or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return
    from torch.distributed import TCPStore

    launcher = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=_TIMEOUT)
    key = f"softlaunch/port/{attempt}"
    if os.environ["RANK"] == "0":
        with socket.create_server(("", 0)) as free:
            launcher.set(key, str(free.getsockname()[1]))
    os.environ.update(MASTER_PORT=launcher.get(key).decode(), TORCHELASTIC_USE_AGENT_STORE="False")
