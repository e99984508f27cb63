#!/usr/bin/env bash
# ResNet-50 AMP on four BI-V100: --data-path DIR [any option of launch.py]; see cards.sh.
exec "$(dirname -- "${BASH_SOURCE[0]}")/cards.sh" AMP BI-V100x4 "$@"
