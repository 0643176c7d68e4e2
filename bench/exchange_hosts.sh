#!/bin/bash
# Exchanges between two hosts, which are network namespaces on one wire here, beside MPICH's MPI_Allreduce on the same wire.
# usage: [MTU=BYTES] bench/exchange_hosts.sh [OPTIONS OF bench comm]      (needs root, iproute2 and the right to make namespaces)
# shellcheck source=tests/t.sh disable=SC1091,SC2154
cd "$(dirname "$0")/.." && . tests/t.sh && . tests/t_hosts.sh
if ! hosts_start 2; then
    echo "left out: $hosts_why"
    exit 0
fi
for i in 0 1; do host $i ip link set eth0 mtu "${MTU:-1500}"; done
"$(realpath "$TANDEM")" bench comm --hosts "$hosts_list" "$@"
