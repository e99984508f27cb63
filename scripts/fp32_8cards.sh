#!/usr/bin/env bash
# ResNet-50 FP32 on eight BI-V100: --data-path DIR [any option of launch.py]; see cards.sh.
exec "$(dirname -- "${BASH_SOURCE[0]}")/cards.sh" FP32 BI-V100x8 "$@"
