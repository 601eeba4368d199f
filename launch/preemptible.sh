#!/usr/bin/env bash
# Runs a command so that a scheduler's signals end it in good order: SIGUSR1, SIGTERM and Ctrl-C reach it, and all that
# it started, as SIGTERM, and this script stays until the last of them has saved its work. Usage:
#   bash launch/preemptible.sh accelerate launch --config_file launch/accelerate/ddp.yaml … recipes/… my_run.json
# Saving may take TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds, 300 unless it is set, before the launcher kills its workers.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"

set -m  # the command gets a process group of its own, to be signalled as one
"$@" &
command=$!
pass_on() { kill -TERM -- "-$command" 2> /dev/null; }
trap pass_on USR1 TERM INT

wait "$command"  # a trapped signal ends it early
while kill -0 -- "-$command" 2> /dev/null; do sleep 0.2; done
wait "$command"
