#!/usr/bin/env bash
# A real SLURM cluster of this one host for the tests: munged, slurmctld and slurmd, as the user who calls it.
# All it writes is in one folder, BSQ_SLURM or /tmp/bsq-slurm-UID; a cluster of the machine's own is not touched.
#   tests/slurm/cluster.sh start     starts it (again, if need be) and prints the line that leads sbatch to it
#   tests/slurm/cluster.sh status    the same line where it answers; else says why not and exits with 1
#   tests/slurm/cluster.sh stop      ends its jobs and its daemons, and removes the folder
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
folder=${BSQ_SLURM:-/tmp/bsq-slurm-$(id -u)}
export SLURM_CONF=$folder/slurm.conf
host=$(hostname -s)

missing() {
  for program in munged slurmctld slurmd sbatch; do
    command -v $program >/dev/null || { echo "$program is not installed (Debian: slurm-wlm and munge)" && return; }
  done
}

answers() {
  [ -f "$SLURM_CONF" ] && [[ $(timeout 10 sinfo --noheader -o %T 2>/dev/null) =~ ^(idle|mixed|allocated)$ ]]
}

configure() {
  mkdir -p "$folder"/{state,spool}
  chmod 700 "$folder"
  [ -f "$folder/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  cat >"$SLURM_CONF" <<END
ClusterName=bsq
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
# Without control groups, which a container may not make.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
# Two CPUs, whatever the host has.
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=4096
PartitionName=test Nodes=$host Default=YES MaxTime=10 State=UP
# Quick, for tests: a cancelled job is killed after KillWait seconds.
KillWait=5
MinJobAge=600
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
END
  printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$folder/cgroup.conf"
}

alive() { [ -s "$folder/$1.pid" ] && kill -0 "$(cat "$folder/$1.pid")" 2>/dev/null; }

start() {
  reason=$(missing)
  [ -z "$reason" ] || { echo "no SLURM: $reason" >&2 && exit 1; }
  answers && return
  configure
  # --force: munged wants neither root nor a folder in /tmp.
  alive munged || munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" >&2
  alive slurmctld || slurmctld >&2
  alive slurmd || slurmd >&2
  for _ in $(seq 60); do
    answers && return
    sleep 0.5
  done
  echo "SLURM was started in $folder and does not answer; the last lines of its logs:" >&2
  tail -n 5 "$folder"/*.log >&2
  exit 1
}

stop() {
  [ -d "$folder" ] || return 0
  # Only a controller that runs answers scancel.
  alive slurmctld && timeout 20 scancel --user="$(id -un)" --signal=KILL --full 2>/dev/null || true
  alive slurmctld && timeout 20 scancel --user="$(id -un)" 2>/dev/null || true
  for daemon in slurmd slurmctld munged; do
    alive $daemon || continue
    pid=$(cat "$folder/$daemon.pid")
    kill "$pid"
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null && sleep 0.2 || break; done
  done
  rm -rf "$folder"
}

case ${1:-} in
  start) start ;;
  stop) stop && exit ;;
  status)
    reason=$(missing)
    [ -z "$reason" ] || { echo "no SLURM: $reason" >&2 && exit 1; }
    answers || { echo "no SLURM cluster answers: start one with tests/slurm/cluster.sh start (make slurm)" >&2 && exit 1; }
    ;;
  *) echo "usage: $0 start|stop|status" >&2 && exit 2 ;;
esac
echo "export SLURM_CONF=$SLURM_CONF"
