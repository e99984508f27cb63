#!/usr/bin/env bash
# Check this release on a machine with an NVIDIA GPU, in under 9 minutes:
#
#   scripts/gpu_check.sh [PLATFORM]           run the checks (default: H200)
#   scripts/gpu_check.sh --print [PLATFORM]   only print the commands, one per line
#
# Runs the GPU tests, short training benchmarks, inference latency, a full training on the demo data
# set in AMP (the CPU platform's configuration on the GPU), and a stopped and resumed run compared
# with an uninterrupted one. Reports and a summary go to benchmarks/results/gpu-<UTC date>/,
# everything else to a temporary folder that is kept when a check fails. Exit 0: all checks passed.
#
# Needs bash, coreutils and awk, and a Python with the package's dependencies: $PYTHON, else
# .venv/bin/python, else python3. No network, no make.
#
# NOT YET RUN ON A GPU: so far only the parsing of these commands is tested.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

print_only=false
if [[ "${1:-}" == --print ]]; then
  print_only=true
  shift
fi
platform="${1:-H200}"
readonly limit_s=520 # for all checks together

if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi
fi

precisions="$("$PYTHON" launch.py --list runs |
  awk -v platform="$platform" '$1 == "resnet50" && $2 == platform { print $3 }')"
if [[ -z "$precisions" ]]; then
  echo "error: resnet50 is listed for no platform '$platform' (launch.py --list runs)" >&2
  exit 2
fi

if $print_only; then
  work=WORK
else
  work="$(mktemp -d)"
  results="benchmarks/results/gpu-$(date -u +%Y-%m-%d)"
  mkdir -p "$results"
  rm -f "$results"/*.json # from an earlier check on the same day
fi
failures=0

# check NAME COMMAND…: run COMMAND within the remaining time and record its exit code.
check() {
  local name="$1"
  shift
  if $print_only; then
    printf '%q ' "$@"
    printf '\n'
    return 0
  fi
  local left=$((limit_s - SECONDS)) started=$SECONDS status=0
  echo "== $name"
  if ((left < 5)); then
    echo "not run: the limit of $limit_s s is reached"
    status=skipped
  else
    timeout --signal=TERM --kill-after=10 "$left" "$@" 2>&1 | tee "$work/$name.log" | tail -n 25
    status=${PIPESTATUS[0]}
  fi
  [[ "$status" == 0 ]] || failures=$((failures + 1))
  printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - started))" >>"$work/checks.tsv"
  if [[ -f "$work/$name/report.json" ]]; then
    cp "$work/$name/report.json" "$results/$name.json"
  fi
  [[ "$status" == 0 ]]
}

# run NAME ARGUMENTS…: run launch.py with the workspace $work/NAME.
run() {
  local name="$1"
  shift
  check "$name" "$PYTHON" launch.py "$@" --workspace "$work/$name"
}

# Fail without a GPU: pytest would skip all tests and exit 0.
check gpu-visible "$PYTHON" -c 'import torch; print(torch.cuda.get_device_name())'
check pytest-gpu "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider tests/gpu

for precision in AMP TF32 BF16; do
  if grep -qx "$precision" <<<"$precisions"; then
    run "train-$precision" --model resnet50 --precision "$precision" \
      --mode benchmark_training_short --platform "$platform" --prof 40 \
      --set run.log_every_steps=10 --set run.benchmark_warmup_steps=10
  fi
done

run inference-AMP --model resnet50 --precision AMP --mode benchmark_inference \
  --platform "$platform" --set run.inference_iterations=50

# The demo uses the settings of the platform CPU on another device.
on_gpu=(--platform CPU --set platform.device=cuda --set data.workers=4)
run demo-AMP --model resnet50 --precision AMP --mode convergence "${on_gpu[@]}" demo
check demo-AMP-accuracy "$PYTHON" -c '
import json, sys
top1 = json.load(open(sys.argv[1]))["results"]["validation"]["top1"]
print(f"top-1 {top1:.2f} %, at least 96 expected")
sys.exit(top1 < 96)' "$work/demo-AMP/report.json"

# A run stopped in the middle of an epoch and resumed must end with the weights of an
# uninterrupted one.
small=(--model resnet18 --precision AMP --mode convergence "${on_gpu[@]}" demo
  --set run.stop_epoch=2 --set run.deterministic=true)
run resume-uninterrupted "${small[@]}"
run resume-stopped "${small[@]}" --prof 30
check resume-continued "$PYTHON" launch.py "${small[@]}" --resume auto \
  --workspace "$work/resume-stopped"
check resume-equal "$PYTHON" -c '
import pathlib, sys
from safetensors.torch import load_file
first, second = ({p.parent.name: p for p in pathlib.Path(folder).glob("checkpoints/*/model.safetensors")}
                 for folder in sys.argv[1:])
step = max(first)
a, b = load_file(first[step]), load_file(second[step])
worst = max(float((a[k].double() - b[k].double()).abs().max()) for k in a)
print(f"{step}: largest difference of any weight {worst:g}, 0 expected")
sys.exit(worst != 0)' "$work/resume-uninterrupted" "$work/resume-stopped"

if $print_only; then exit 0; fi

"$PYTHON" - "$work/checks.tsv" "$results" "$platform" <<'PYTHON_CODE'
"""Write summary.json: date, requested platform, devices, versions, exit code of each check."""
import datetime
import json
import pathlib
import sys

checks, results, platform = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
reports = {p.stem: json.loads(p.read_text()) for p in sorted(results.glob("*.json"))
           if p.stem != "summary"}
ended = [line.split("\t") for line in checks.read_text().splitlines()]
summary = {
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "platform": platform,
    "environment": next((r["environment"] for r in reports.values()), None),
    "checks": [{"name": n, "exit": s, "time_s": int(t)} for n, s, t in ended],
    "train_images_per_s": {n: r["results"]["train"]["images_per_s"] for n, r in reports.items()},
    "top1": {n: r["results"]["validation"]["top1"] for n, r in reports.items()},
}
(results / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
for check in summary["checks"]:
    print(f"{check['name']:<22} exit {check['exit']:<8} {check['time_s']} s")
print(results / "summary.json")
PYTHON_CODE

if ((failures)); then
  echo "$failures checks failed; logs and runs are in $work" >&2
  exit 1
fi
rm -rf "$work"
