#!/usr/bin/env bash
# Train on two simulated nodes: two network namespaces joined by a virtual Ethernet link (a veth
# pair), with launch.py started once in each. Needs root and iproute2. Removes its namespaces at the
# end, and those that a killed run has left.
#
#   scripts/two_nodes_demo.sh [WORKSPACE] [any option of launch.py …]
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ "$(id -u)" != 0 ]] || ! command -v ip >/dev/null; then
  echo "error: network namespaces need root and iproute2's ip command" >&2
  exit 2
fi
python="${PYTHON:-python3}"
if [[ -z "${PYTHON:-}" && -x .venv/bin/python ]]; then python=.venv/bin/python; fi
workspace="${1:-runs/two-nodes-$(date -u +%Y%m%dT%H%M%SZ)}"
shift $(($# > 0 ? 1 : 0))
if (($# == 0)); then
  set -- --model resnet18 --precision FP32 --mode convergence --platform CPU demo --epochs 2
fi

first="ic-$$-0" second="ic-$$-1"
address=10.213.47
cleanup() {
  kill "${second_pid:-}" 2>/dev/null && wait "$second_pid" 2>/dev/null || true
  ip netns delete "$first" 2>/dev/null || true
  ip netns delete "$second" 2>/dev/null || true
}
trap cleanup EXIT

# Remove the namespaces of killed runs: those whose process no longer exists.
while read -r name _; do
  if [[ "$name" =~ ^ic-([0-9]+)-[01]$ && ! -d "/proc/${BASH_REMATCH[1]}" ]]; then
    ip netns delete "$name"
  fi
done < <(ip netns list)

ip netns add "$first"
ip netns add "$second"
ip link add wire0 netns "$first" type veth peer name wire1 netns "$second"
for node in 0 1; do
  netns="ic-$$-$node"
  ip -n "$netns" address add "$address.$((node + 1))/24" dev "wire$node"
  ip -n "$netns" link set lo up
  ip -n "$netns" link set "wire$node" up
done

launch() { # NODE OPTION…
  local node="$1"
  shift
  # Both nodes share this machine's cores.
  local threads=$((($(nproc) + 1) / 2))
  exec ip netns exec "ic-$$-$node" env OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}" \
    NNODES=2 NODE_RANK="$node" \
    MASTER_ADDR="$address.1" MASTER_PORT=29500 TORCH_CPP_LOG_LEVEL=ERROR \
    "$python" launch.py "$@" --set platform.num_devices=1 --workspace "$workspace"
}

(launch 1 "$@") &
second_pid=$!
(launch 0 "$@")
wait "$second_pid"
unset second_pid
