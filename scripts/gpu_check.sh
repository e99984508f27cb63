#!/usr/bin/env bash
# What to run once on a machine with an NVIDIA GPU, in under 9 minutes:
#
#   scripts/gpu_check.sh [PLATFORM]           check this checkout there (default: H200)
#   scripts/gpu_check.sh --print [PLATFORM]   only print the commands, one a line
#
# The GPU tests, short training benchmarks, inference latency, the demo data set to its end in AMP
# (the CPU platform's own configuration, on the GPU), and a run that is stopped and resumed against
# one that is not. Reports and a summary go to benchmarks/results/gpu-<UTC date>/, everything else
# to a temporary folder that is kept when something fails. Exit 0: every check passed.
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
readonly limit_s=520 # of all checks together

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
  rm -f "$results"/*.json # of an earlier check on the same day
fi
failures=0

# check NAME COMMAND…: run it in what is left of the time; note how it ended.
check() {
  local name="$1"
  shift
  if $print_only; then
    printf '%q ' "$@"
    printf '\n'
    return 0
  fi
  local left=$((limit_s - SECONDS)) begun=$SECONDS status=0
  echo "== $name"
  if ((left < 5)); then
    echo "not run: $limit_s s are over"
    status=skipped
  else
    timeout --signal=TERM --kill-after=10 "$left" "$@" 2>&1 | tee "$work/$name.log" | tail -n 25
    status=${PIPESTATUS[0]}
  fi
  [[ "$status" == 0 ]] || failures=$((failures + 1))
  printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - begun))" >>"$work/checks.tsv"
  if [[ -f "$work/$name/report.json" ]]; then
    cp "$work/$name/report.json" "$results/$name.json"
  fi
  [[ "$status" == 0 ]]
}

# run NAME ARGUMENTS…: one launch.py run with its folder.
run() {
  local name="$1"
  shift
  check "$name" "$PYTHON" launch.py "$@" --workspace "$work/$name"
}

# Without a GPU the tests would be skipped, which is no pass.
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

# The demo's settings are those of the platform CPU; only the device is another.
on_gpu=(--platform CPU --set platform.device=cuda --set data.workers=4)
run demo-AMP --model resnet50 --precision AMP --mode convergence "${on_gpu[@]}" demo
check demo-AMP-accuracy "$PYTHON" -c '
import json, sys
top1 = json.load(open(sys.argv[1]))["results"]["validation"]["top1"]
print(f"top-1 {top1:.2f} %, at least 96 expected")
sys.exit(top1 < 96)' "$work/demo-AMP/report.json"

# Stopped in the middle of an epoch and resumed: the same weights as never stopped?
small=(--model resnet18 --precision AMP --mode convergence "${on_gpu[@]}" demo
  --set run.stop_epoch=2 --set run.deterministic=true)
run resume-never-stopped "${small[@]}"
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
sys.exit(worst != 0)' "$work/resume-never-stopped" "$work/resume-stopped"

if $print_only; then exit 0; fi

"$PYTHON" - "$work/checks.tsv" "$results" "$platform" <<'PYTHON_CODE'
"""Write summary.json: date, platform asked for, devices, versions, how each check ended."""
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
