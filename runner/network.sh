#!/usr/bin/env bash
# The network that jobs get: the internet, but neither cloud metadata nor this machine. Run by ml-runner-network.service.
# Reads BLOCKED_NETWORKS from /etc/ml-runner/network.env by way of the unit; may run again and again.
set -euo pipefail
network=ml-runner bridge=ml-runner0 chain=ML-RUNNER
# metadata and host services of AWS, GCP, Azure, OCI (link-local), Azure's WireServer, Alibaba Cloud
blocked=${BLOCKED_NETWORKS:-169.254.0.0/16 168.63.129.16/32 100.100.100.200/32}

# No IPv6: these rules, and the metadata address fd00:ec2::254, would need a second set.
docker network inspect "$network" >/dev/null 2>&1 ||
  docker network create --ipv6=false --opt "com.docker.network.bridge.name=$bridge" \
    --opt com.docker.network.bridge.enable_icc=false "$network" >/dev/null

first() { # the rule stands first in its chain, once
  iptables --wait --check "$@" 2>/dev/null || iptables --wait --insert "$@"
}

iptables --wait --new-chain "$chain" 2>/dev/null || iptables --wait --flush "$chain"
for protocol in udp tcp; do # on some clouds the metadata address is also the name server
  iptables --wait --append "$chain" --protocol "$protocol" --dport 53 --jump RETURN
done
for address in $blocked; do
  iptables --wait --append "$chain" --destination "$address" --jump REJECT
done
first DOCKER-USER --in-interface "$bridge" --jump "$chain"
first INPUT --in-interface "$bridge" --jump REJECT
echo "network: containers on $network cannot reach this machine nor $blocked"
