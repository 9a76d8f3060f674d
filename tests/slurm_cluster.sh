#!/usr/bin/env bash
# A SLURM cluster of this one machine, for trying --slurm: munged, slurmctld and slurmd (Debian: slurm-wlm), as root.
#   bash tests/slurm_cluster.sh FOLDER        then export SLURM_CONF=FOLDER/slurm.conf, and use sbatch, squeue, scancel
#   bash tests/slurm_cluster.sh FOLDER stop
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
if [ "${2:-}" = stop ]; then
    for name in slurmd slurmctld munged; do
        [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
    done
    exit
fi
mkdir -p "$folder"/{state,spool}
host=$(hostname -s) cores=$(nproc)
[ -f "$folder/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
cat >"$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerType=sched/builtin
ReturnToService=2
KillWait=5
MinJobAge=60
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd
for _ in $(seq 30); do
    sinfo -h -o %T 2>/dev/null | grep -q idle && exit 0
    sleep 1
done
sinfo >&2
tail -5 "$folder"/*.log >&2
exit 1
