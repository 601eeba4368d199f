"""A Kubeflow PyTorchJob made from the same `Job` as Slurm's script."""

import posixpath
import zlib

from softlaunch.errors import LaunchError
from softlaunch.launching.job import Job, quoted

_PORT = 29500
_FOLDER = "/workspace"
_LONGEST_NAME = 50  # the operator adds to it for pods, whose names have at most 63 letters


def render_pytorchjob(job: Job, made: str) -> str:
    """The manifest as YAML, for `kubectl apply -f`. `made`, the time, tells this job from another one of its name.

    Raises LaunchError for an array, which Kubeflow does not have, and for an output_dir that would go with the pod.

    The image has the environment; the profile's volume claim holds the folder that is submitted from, with project,
    rows, base model and `output_dir`. The operator sets MASTER_ADDR; nodes meet there by c10d, as under Slurm. A pod
    that is evicted gets TERM and the time to save, is started again, and goes on from the checkpoint.
    """
    if job.is_array:
        raise LaunchError("--array is Slurm's; for Kubernetes render one manifest per value")
    place = posixpath.normpath(posixpath.join(_FOLDER, job.tasks[0].output_dir))
    if not place.startswith(f"{_FOLDER}/"):
        raise LaunchError(
            "output_dir {output_dir} lies outside of {folder}, where the volume is mounted: what is written there goes "
            "with the pod. Give it relative to the folder that you submit from",
            output_dir=job.tasks[0].output_dir,
            folder=_FOLDER,
        )
    name = _name(job)
    identity = f"{name} {made}"
    workers = job.machines.num_nodes - 1
    replicas = _replica("Master", 1, job, identity) + (_replica("Worker", workers, job, identity) if workers else "")
    return (
        f"# {quoted(job.run_words)}: {job.machines.num_nodes} × {job.machines.processes_per_node} processes, "
        f"{job.strategy.name}.\n"
        f"# kubectl apply -f THIS_FILE; logs: kubectl logs -f {name}-master-0\n"
        "apiVersion: kubeflow.org/v1\n"
        "kind: PyTorchJob\n"
        "metadata:\n"
        f"  name: {name}\n"
        f"  namespace: {job.profile.namespace}\n"
        "spec:\n"
        f'  nprocPerNode: "{job.machines.processes_per_node}"\n'
        "  runPolicy:\n"
        "    cleanPodPolicy: Running\n"
        f"    backoffLimit: {job.profile.max_requeues}\n"
        "  pytorchReplicaSpecs:\n"
        f"{replicas}"
    )


def _name(job: Job) -> str:
    """It begins with a letter, and is short; a number tells apart what is cut."""
    name = job.name.lower().strip("-")
    name = name if name[:1].isalpha() else f"run-{name}".rstrip("-")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9].rstrip('-')}-{zlib.crc32(name.encode()):08x}"


def _replica(role: str, number: int, job: Job, identity: str) -> str:
    profile, machines = job.profile, job.machines
    environment = {
        **profile.environment,
        "SOFTLAUNCH_JOB": identity,
        "SOFTLAUNCH_WORLD_SIZE": str(machines.num_processes),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(profile.save_time_s),
    }
    limits = {
        "nvidia.com/gpu": machines.gpus_per_node or None,
        "cpu": profile.cpus_per_node,
        "memory": profile.memory_per_node,
    }
    lines = [
        f"{role}:",
        f"  replicas: {number}",
        "  restartPolicy: OnFailure",
        "  template:",
        "    spec:",
        f"      terminationGracePeriodSeconds: {profile.save_time_s + 30}",
        "      containers:",
        "        - name: pytorch  # the operator looks for this name",
        f"          image: {_text(profile.image)}",
        f"          workingDir: {_FOLDER}",
        '          command: ["bash", "-c"]',
        "          args:",
        "            - |",
        *(f"              {line}" for line in _command(job)),
        "          env:",
        *(f"            - {{name: {key}, value: {_text(value)}}}" for key, value in sorted(environment.items())),
        "          resources:",
        "            limits:",
        *(f"              {key}: {_text(str(value))}" for key, value in limits.items() if value is not None),
        "          volumeMounts:",
        f"            - {{name: project, mountPath: {_FOLDER}}}",
        "            - {name: shm, mountPath: /dev/shm}  # NCCL's and the data loaders' shared memory",
        "      volumes:",
        f"        - {{name: project, persistentVolumeClaim: {{claimName: {profile.volume_claim}}}}}",
        "        - {name: shm, emptyDir: {medium: Memory}}",
    ]
    if not any(limits.values()):
        lines = [line for line in lines if line.strip() not in ("resources:", "limits:")]
    return "".join(f"    {line}\n" for line in lines)


def _command(job: Job) -> list[str]:
    launcher = quoted(job.launcher_words)
    if job.machines.num_nodes > 1:
        launcher += f' --main_process_ip "$MASTER_ADDR" --main_process_port "${{MASTER_PORT:-{_PORT}}}"'
    return [*job.profile.setup, f"exec {launcher} \\", f"  {quoted([*job.run_words, *job.tasks[0].words])}"]


def _text(value: str) -> str:
    """As a YAML scalar that stays text."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
