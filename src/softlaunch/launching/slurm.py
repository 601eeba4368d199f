"""The text of a Slurm job, made from a `Job` and nothing else."""

from softlaunch.launching.job import Job, quoted
from softlaunch.run_directory import MARKER_FILE

_SCRIPT_RESERVE_S = 60  # between the end of the run's time to save and Slurm's limit, to requeue


def render_sbatch(job: Job) -> str:
    """The whole script, ready for `sbatch` in the folder that holds the project."""
    return "\n".join([*_header(job), "", *_facts(job), "", *_environment(job), _CHECKS, *_on_node(job), _RUN])


def log_file(job: Job, job_id: str = "%j") -> str:
    """Where Slurm writes the main log; of an array one file per task."""
    number = job_id if not job.is_array else f"{'%A' if job_id == '%j' else job_id}_%a"
    return f"{job.profile.log_dir}/{'%x' if job_id == '%j' else job.name}-{number}.log"


def _header(job: Job) -> list[str]:
    machines, profile = job.machines, job.profile
    what = f"{machines.gpus_per_node} GPUs" if machines.on_gpu else "1 process on its CPU"
    options = {
        "job-name": job.name,
        "nodes": machines.num_nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": profile.cpus_per_node,
        "mem": profile.memory_per_node,
        "time": profile.time_limit,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "array": f"0-{len(job.tasks) - 1}" if job.is_array else None,
        "output": log_file(job),
        "open-mode": "append",
        "signal": f"B:USR1@{profile.save_time_s + _SCRIPT_RESERVE_S}",
    }
    lines = [f"--{name}={quoted([str(value)])}" for name, value in options.items() if value is not None]
    if machines.on_gpu and profile.gpu_request:
        lines.insert(3, profile.gpu_request.replace("{gpus}", str(machines.gpus_per_node)))
    lines += ["--requeue", *(["--exclusive"] if profile.exclusive else []), *profile.options]
    return [
        "#!/usr/bin/env bash",
        f"# {quoted(job.run_words)}: {machines.num_nodes} × {what}, {job.strategy.name}.",
        "# In the folder that holds the project: mkdir -p " + quoted([profile.log_dir]) + " && sbatch THIS_FILE",
        *(f"#SBATCH {line}" for line in lines),
        "",
        "set -uo pipefail",
    ]


def _facts(job: Job) -> list[str]:
    lines = [
        f"nodes={job.machines.num_nodes}",
        f"processes_per_node={job.machines.processes_per_node}",
        f"gpus_per_node={job.machines.gpus_per_node if job.profile.gpu_request else 0}",
        f"save_time_s={job.profile.save_time_s}",
        f"max_requeues={job.profile.max_requeues}",
    ]
    marker = f'export marker="$output_dir/{MARKER_FILE}"'
    if not job.is_array:
        task = job.tasks[0]
        return [*lines, f"output_dir={quoted([task.output_dir])}", f"task_words=({quoted(task.words)})", marker]
    lines.append("case $SLURM_ARRAY_TASK_ID in")
    for number, task in enumerate(job.tasks):
        lines.append(f"{number}) output_dir={quoted([task.output_dir])} task_words=({quoted(task.words)}) ;;")
    return [*lines, "esac", marker]


def _environment(job: Job) -> list[str]:
    lines = [f"module load {quoted([module])}" for module in job.profile.modules]
    lines += [f"export {name}={quoted([value])}" for name, value in sorted(job.profile.environment.items())]
    return [*lines, *job.profile.setup, *([""] if lines or job.profile.setup else [])]


_CHECKS = """\
fail() { echo "error: $1" >&2; exit 2; }

# What was asked for is here; a run in a world of another size would train otherwise
[ "$SLURM_JOB_NUM_NODES" = "$nodes" ] || fail "this job has $SLURM_JOB_NUM_NODES nodes, and its run needs $nodes"
[ "$gpus_per_node" = 0 ] || [ "${SLURM_GPUS_ON_NODE:-0}" = "$gpus_per_node" ] ||
    fail "$SLURMD_NODENAME gives this job ${SLURM_GPUS_ON_NODE:-0} GPUs, and its run needs $gpus_per_node per node"
export SOFTLAUNCH_WORLD_SIZE=$((nodes * processes_per_node))  # which every process compares with what it sees

# The nodes meet at the first of them, on a port that belongs to this job
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MAIN_ADDRESS MAIN_PORT
MAIN_ADDRESS=$(scontrol -o show node "$head" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000))
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$save_time_s

# On every node one launcher. Asked to end, it passes TERM on to its processes, which save a checkpoint and leave a
# marker; where they are too young for that, it is left here. USR1 would kill the launcher, and Slurm may send it to all
# processes alike: it does not hear of it.
on_node() {
    launcher='' asked=''
    trap 'asked=1; kill -TERM $launcher 2>/dev/null' USR1 TERM
    (trap '' USR1 && launch "$@") &
    launcher=$!
    while wait "$launcher"; code=$?; kill -0 "$launcher" 2>/dev/null; do :; done
    [ -z "$asked" ] || [ "$code" = 0 ] || [ -e "$marker" ] || echo '{}' >"$marker"
    return "$code"
}
"""


def _on_node(job: Job) -> list[str]:
    launcher = quoted(job.launcher_words)
    if job.machines.num_nodes > 1:
        launcher += ' \\\n        --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT"'
    elif job.is_launched:
        launcher += ' --main_process_port "$MAIN_PORT"'
    return ["launch() {", f"    exec {launcher} \\", f'        {quoted(job.run_words)} "$@"', "}"]


_RUN = """
# USR1 from Slurm (time limit, preemption) goes on to the nodes; srun would take TERM as an order to kill
mkdir -p "$output_dir"
rm -f "$marker"
step='' asked=''
trap 'asked=1; kill -USR1 $step 2>/dev/null' USR1 TERM
srun --wait=60 --kill-on-bad-exit=0 \\
    bash -c "$(declare -f on_node launch); on_node \"\\$@\"" on_node "${task_words[@]}" &
step=$!
while wait "$step"; code=$?; kill -0 "$step" 2>/dev/null; do :; done
[ -z "$asked" ] || [ "$code" = 0 ] || [ -e "$marker" ] || echo '{}' >"$marker"

# A run that was asked to end left its marker: back into the queue, and it goes on. Not when somebody cancelled it
if [ -e "$marker" ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
    requeues=${SLURM_RESTART_COUNT:-0}
    [ "$requeues" -lt "$max_requeues" ] ||
        fail "the run was asked to end after $requeues requeues, and no more are allowed; submit it again to go on"
    echo "requeue $((requeues + 1)) of at most $max_requeues" >&2
    scontrol requeue "$SLURM_JOB_ID" && sleep 60  # until Slurm ends this script
fi
exit "$code"
"""
