#!/bin/sh
# Two nodes of a Ray cluster on this machine, with a processor each, as `ray start` makes them on two machines.
# They end with this script. FOLDER must be short, for it holds sockets; FOLDER/ray_current_cluster is the address.
#
#   two_nodes.sh FOLDER
set -eu
folder=$1
export RAY_TMPDIR="$folder" RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0
export RAY_worker_niceness=0 # else other tests beside would hold workers up for minutes
node="--num-cpus=1 --object-store-memory=100000000 --block"
trap 'kill $head $other 2>/dev/null; wait; exit 0' TERM INT
other=
ray start --head --port=0 --temp-dir="$folder" --include-dashboard=false $node >"$folder/head.log" 2>&1 &
head=$!
until [ -s "$folder/ray_current_cluster" ]; do
    kill -0 $head
    sleep 0.2
done
ray start --address="$(cat "$folder/ray_current_cluster")" $node >"$folder/other.log" 2>&1 &
other=$!
wait
