"""A real Slurm cluster of two nodes on this one machine, with everything that it writes in one directory.

All daemons run as children of the test process, which ends them. Debian and Ubuntu: apt-get install slurm-wlm munge.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("node1", "node2")
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 15.0


def why_not() -> str | None:
    """What is missing for a cluster here; None if nothing is."""
    path = os.environ["PATH"] + ":/usr/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"{', '.join(missing)} not found: as root, apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm's daemons on one machine need root"


class Cluster:
    """Start it with `with`; inside, SLURM_CONF points to it."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Cluster":
        for name in ("state", "log"):
            (self.directory / name).mkdir()
        os.environ["SLURM_CONF"] = str(self._write_configuration())
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        key = self.directory / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        munge = [f"--key-file={key}", f"--socket={self.directory}/munge", f"--pid-file={self.directory}/munged.pid"]
        files = [f"--log-file={self.directory}/log/munged", f"--seed-file={self.directory}/munge.seed"]
        self._daemon("munged", "--foreground", "--force", *munge, *files)
        self._wait_for(lambda: (self.directory / "munge").exists())
        self._daemon("slurmctld", "-D", "-i")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        self._wait_for(lambda: len(self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()) == len(NODES))

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        os.environ.pop("SLURM_CONF", None)

    def run(self, *command: str) -> str:
        """The output of one of Slurm's programs; nothing while the controller does not answer."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout

    def _daemon(self, *command: str) -> None:
        environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        with (self.directory / "log" / f"{command[0]}-{len(self.daemons)}").open("w") as log:
            self.daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def _wait_for(self, condition) -> None:
        end = time.monotonic() + _START_TIMEOUT_S
        while not condition():
            dead = [daemon.args for daemon in self.daemons if daemon.poll() is not None]
            if dead or time.monotonic() > end:
                logs = [f"{file}:\n{file.read_text()[-1500:]}" for file in sorted((self.directory / "log").iterdir())]
                raise RuntimeError(f"the cluster did not start, {dead} ended\n" + "\n".join(logs))
            time.sleep(0.2)

    def _write_configuration(self) -> Path:
        host, base = socket.gethostname().split(".")[0], _free_ports()
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={base + 1 + number} CPUs=1 State=UNKNOWN"
            for number, node in enumerate(NODES)
        ]
        text = f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={base}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self.directory}/munge
StateSaveLocation={self.directory}/state
SlurmdSpoolDir={self.directory}/spool-%n
SlurmctldPidFile={self.directory}/slurmctld.pid
SlurmdPidFile={self.directory}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SchedulerParameters=sched_interval=5,sched_min_interval=0
JobAcctGatherType=jobacct_gather/none
{chr(10).join(nodes)}
PartitionName=debug Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP
"""
        file = self.directory / "slurm.conf"
        file.write_text(text)
        return file


def _free_ports() -> int:
    """The first of three ports in a row that nobody listens on."""
    for base in range(16817, 17800, 10):
        sockets = [socket.socket() for _ in range(3)]
        try:
            for number, one in enumerate(sockets):
                one.bind(("127.0.0.1", base + number))
            return base
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise RuntimeError("no free ports for a cluster")
