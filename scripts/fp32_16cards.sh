#!/usr/bin/env bash
# ResNet-50 FP32 on two machines of eight BI-V100: --data-path DIR [any option of launch.py], and
# NODE_RANK MASTER_ADDR [NNODES MASTER_PORT] in the environment; see cards.sh.
exec "$(dirname -- "${BASH_SOURCE[0]}")/cards.sh" FP32 BI-V100x16 "$@"
