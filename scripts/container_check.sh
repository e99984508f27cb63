#!/usr/bin/env bash
# Compare the accuracy and speed of images: run short benchmarks and the demo training in each
# image, and compare the results.
#
#   scripts/container_check.sh [options] IMAGE [IMAGE…]
#
#   --platform P     default: CPU on a host without NVIDIA GPUs; with GPUs it must be given
#   --model M        default: resnet50
#   --precision P    default: AMP
#   --data DIR       also measure loading from this folder
#   --results DIR    default: runs/container-check-<UTC date>; must be empty
#   --repeat N       runs of each benchmark; medians are compared (default: 1)
#   --quick          test the check itself in a minute or two: resnet18 at 32 px, few steps, wide
#                    thresholds
#   --threshold-KIND VALUE    passed to `report compare`, such as --threshold-throughput 10
#
# Several images: the first is compared with each of the others. One image: it is compared with the
# latest earlier check with the same settings in a folder next to --results: with the same image
# there, else with the last one.
#
# Exit 0: no regression, or nothing to compare with; 4: a figure regressed; 1: a run failed (the
# others are still compared); 2: a usage error, in one line; 130, 143: interrupted, after the running
# container was stopped.
#
# Needs bash 4.4, coreutils, util-linux and docker; no Python on the host.
set -uo pipefail

readonly stop_grace_s=120 # time to save a checkpoint
usage_error() {
  echo "error: $1" >&2
  exit 2
}

platform='' model='' precision=AMP data='' results='' repeat=1 quick=false
images=() own_thresholds=()
while (($#)); do
  case "$1" in
    -h | --help)
      sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --quick) quick=true ;;
    --platform | --model | --precision | --data | --results | --repeat | \
      --threshold-throughput | --threshold-top1 | --threshold-top5 | --threshold-latency | \
      --threshold-memory | --threshold-power)
      (($# >= 2)) || usage_error "$1 needs a value; see --help"
      case "$1" in
        --platform) platform="$2" ;;
        --model) model="$2" ;;
        --precision) precision="$2" ;;
        --data) data="$2" ;;
        --results) results="$2" ;;
        --repeat) repeat="$2" ;;
        *)
          [[ "$2" =~ ^[0-9]+(\.[0-9]+)?$ ]] || usage_error "$1 $2 is not a number of 0 or more"
          own_thresholds+=("$1" "$2")
          ;;
      esac
      shift
      ;;
    -*) usage_error "there is no option $1; see --help" ;;
    *) images+=("$1") ;;
  esac
  shift
done

((${#images[@]})) || usage_error "no image given; usage: scripts/container_check.sh IMAGE [IMAGE…]"
[[ "$repeat" =~ ^[1-9][0-9]?$ ]] || usage_error "--repeat $repeat is not a number from 1 to 99"
command -v docker >/dev/null || usage_error "docker is not installed; install Docker's client"
engine="$(docker version --format '{{.Server.Version}}' 2>/dev/null)" ||
  usage_error "no docker engine answers; start it, or set DOCKER_HOST"

folders=()
for image in "${images[@]}"; do
  docker image inspect "$image" >/dev/null 2>&1 ||
    usage_error "there is no image $image here; docker pull it, or build it with scripts/docker/build.sh"
  folder="${image//[^A-Za-z0-9._-]/_}"
  for other in "${folders[@]}"; do
    [[ "$folder" != "$other" ]] || usage_error "$image is given twice; name each image once"
  done
  folders+=("$folder")
done
newest="${images[-1]}"

driver=''
if gpus="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null)"; then
  driver="${gpus%%$'\n'*}"
fi
if [[ -z "$platform" ]]; then
  [[ -z "$driver" ]] || usage_error "this host has NVIDIA GPUs; give --platform, one of those that\
 docker run --rm $newest launch.py --list platforms shows"
  platform=CPU
fi
if [[ -n "$data" ]]; then
  [[ -d "$data" ]] || usage_error "--data $data is not a folder; give one with train and val"
  data="$(cd "$data" && pwd)" || exit 2
fi

date="$(date -u +%Y-%m-%dT%H:%M:%SZ)"
results="${results:-runs/container-check-${date%T*}}"
if [[ -e "$results" && -n "$(ls -A "$results" 2>&1)" ]]; then
  usage_error "$results is not empty; give another folder with --results"
fi
mkdir -p "$results" || exit 2
results="$(cd "$results" && pwd)" || exit 2
[[ "$results$data" != *:* ]] ||
  usage_error "docker cannot mount a folder with ':' in its name; move $results or $data"

# The runs and the thresholds. One of the demo's 360 validation images is 0.28 points of top-1; the
# standard deviation over seeds is 0.6.
thresholds=(--threshold-top1 1.5 --threshold-top5 1)
training=() inference=() convergence=(demo)
if $quick; then
  model="${model:-resnet18}"
  small=(--set data.image_size=32)
  training=(--prof 6 --set run.benchmark_warmup_steps=2 "${small[@]}")
  inference=(--set "run.inference_batches=[1,8]" --set run.inference_iterations=10 "${small[@]}")
  convergence+=(--epochs 1 "${small[@]}")
  # Few steps: they test the check, not the speed or accuracy of the image.
  thresholds=(--threshold-throughput 95 --threshold-latency 2000 --threshold-memory 60
    --threshold-power 60 --threshold-top1 30 --threshold-top5 30)
fi
thresholds+=("${own_thresholds[@]}")
model="${model:-resnet50}"
names=(--model "$model" --precision "$precision")
modes=(benchmark_training_short benchmark_inference)
[[ -z "$data" ]] || modes+=(benchmark_data)
modes+=(convergence)
[[ "$model$precision$platform" =~ ^[A-Za-z0-9._-]+$ ]] ||
  usage_error "'$model $precision $platform' are not valid names; launch.py --list shows them"
checked="$model $precision on $platform, $repeat x ${modes[*]}"
if $quick; then checked+=", quick"; fi

flags=(--rm --user "$(id -u):$(id -g)" --read-only --tmpfs /tmp:exec --ipc=host
  --env COLUMNS="${COLUMNS:-100}")
if [[ "$platform" != CPU && -n "$driver" ]]; then flags+=(--gpus all); fi
limits=(--ulimit memlock=-1 --ulimit stack=67108864)

work="$(mktemp -d)" || exit 1
trap 'rm -rf "$work"' EXIT
client='' ended=() outcome=interrupted

# in_image OUT ERR OPTION… IMAGE COMMAND…: run a container to its end, with its output in the files
# OUT and ERR; return its exit code. The image's banner is in ERR.
in_image() {
  local out="$1" err="$2"
  shift 2
  : >"$out"
  : >"$err"
  rm -f "$work/id"
  # In a new session, so that Ctrl-C reaches only this script, which then stops the container.
  setsid docker run --cidfile "$work/id" "${flags[@]}" "${limits[@]}" "$@" >>"$out" 2>>"$err" \
    </dev/null &
  client=$!
  wait "$client"
  local status=$?
  client=''
  return "$status"
}

# shellcheck disable=SC2329 # called by the traps
interrupted() { # CODE
  trap '' INT TERM HUP
  if [[ -n "$client" ]]; then
    echo "interrupted: stopping the running container, which has $stop_grace_s s to save" >&2
    # The client writes the id when the engine has created the container.
    for _ in {1..100}; do
      if [[ -s "$work/id" ]] || ! kill -0 "$client" 2>/dev/null; then break; fi
      sleep 0.1
    done
    if [[ -s "$work/id" ]]; then
      docker stop -t "$stop_grace_s" "$(<"$work/id")" >/dev/null 2>&1
    else
      kill "$client" 2>/dev/null
    fi
    wait "$client"
  fi
  write_summary
  exit "$1"
}
trap 'interrupted 130' INT
trap 'interrupted 143' TERM HUP

readonly base_label='{{with .Config.Labels}}{{index . "org.opencontainers.image.base.name"}}{{end}}'
readonly json_members='"id": {{json .Id}}, "digests": {{json .RepoDigests}}, "labels": {{json .Config.Labels}}'
image_field() { docker image inspect --format "$1" "$2"; }

# Every value in the JSON is printed by docker as JSON, or has no quotes and backslashes.
write_summary() {
  local at line image folder run status
  {
    echo "date     $date"
    echo "checked  $checked"
    echo "docker   $engine"
    echo "driver   ${driver:-none}"
    for at in "${!images[@]}"; do
      image="${images[at]}"
      echo "image    $image"
      echo "  folder ${folders[at]}"
      echo "  id     $(image_field '{{.Id}}' "$image")"
      echo "  base   $(image_field "$base_label" "$image")"
    done
    for line in "${ended[@]}"; do
      read -r folder run status <<<"$line"
      echo "run      $folder/$run: exit $status"
    done
    echo "outcome  $outcome"
  } >"$results/summary.txt"
  local comma=''
  {
    printf '{\n "date": "%s",\n "checked": "%s",\n "docker": "%s",\n' \
      "$date" "$checked" "$engine"
    if [[ -n "$driver" ]]; then printf ' "driver": "%s",\n' "$driver"; else echo ' "driver": null,'; fi
    echo ' "images": ['
    for at in "${!images[@]}"; do
      printf '%s  {"image": "%s", "folder": "%s", %s}' "$comma" "${images[at]}" "${folders[at]}" \
        "$(image_field "$json_members" "${images[at]}")"
      comma=$',\n'
    done
    printf '\n ],\n "runs": [\n'
    comma=''
    for line in "${ended[@]}"; do
      read -r folder run status <<<"$line"
      printf '%s  {"folder": "%s", "run": "%s", "exit": %s}' "$comma" "$folder" "$run" "$status"
      comma=$',\n'
    done
    printf '\n ],\n "outcome": "%s"\n}\n' "$outcome"
  } >"$results/summary.json"
}

# Before long runs: check that each image starts and knows these names.
explain=(launch.py "${names[@]}" --mode benchmark_inference --platform "$platform" --explain)
for image in "${images[@]}"; do
  in_image "$work/log" "$work/log" "$image" "${explain[@]}"
  status=$?
  # Some engines may not raise limits, most often that of locked memory.
  for fewer in "--ulimit stack=67108864" ""; do
    if ((status <= 2 || ${#limits[@]} == 0)); then break; fi
    refused="${limits[*]}"
    read -ra limits <<<"$fewer"
    in_image "$work/log" "$work/log" "$image" "${explain[@]}"
    status=$?
    if ((status == 0)); then
      echo "note: this engine refuses $refused; continuing with ${fewer:-neither}" >&2
    fi
  done
  if ((status)); then
    line="$(grep -m 1 '^error: ' "$work/log" || tail -n 1 "$work/log")"
    usage_error "$image cannot run ${explain[*]:1:8} here: ${line#error: }"
  fi
done

run_mode() { # AT MODE NAME
  local at="$1" mode="$2" name="$3" status
  local image="${images[at]}" folder="${folders[at]}"
  local options=(--volume "$results/$folder:/workspace/runs") on=(--platform "$platform") more=()
  case "$mode" in
    benchmark_training_short) more=("${training[@]}") ;;
    benchmark_inference) more=("${inference[@]}") ;;
    benchmark_data)
      options+=(--volume "$data:/imagenet:ro")
      more=(/imagenet)
      ;;
    convergence)
      more=("${convergence[@]}")
      # The demo uses the settings of the platform CPU, also on a GPU.
      on=(--platform CPU)
      if [[ "$platform" != CPU ]]; then on+=(--set platform.device=cuda --set data.workers=4); fi
      ;;
  esac
  local log="$results/$folder/$name.log" started=$SECONDS
  in_image "$log" "$log" "${options[@]}" "$image" launch.py "${names[@]}" --mode "$mode" "${on[@]}" \
    "${more[@]}" --workspace "/workspace/runs/$name"
  status=$?
  ended+=("$folder $name $status")
  if ((status)); then
    echo "failed: $image, $mode: exit $status, $(tail -n 1 "$log" | cut -c 1-200); see $log" >&2
    return
  fi
  good[at]+=" $name"
  echo "done: $image, $mode, $((SECONDS - started)) s"
}

echo "checking $checked"
good=()
for folder in "${folders[@]}"; do mkdir "$results/$folder" || exit 2; done
# Alternate between images, so that a change of the host's speed affects all of them.
for ((turn = 1; turn <= repeat; turn++)); do
  for at in "${!images[@]}"; do
    for mode in "${modes[@]}"; do
      name="$mode"
      if ((repeat > 1)); then name="$mode-$turn"; fi
      run_mode "$at" "$mode" "$name"
    done
  done
done

failed=false regressed=false compared=true
for line in "${ended[@]}"; do [[ "$line" == *' 0' ]] || failed=true; done

report() { # EARLIER COMMAND…: run `report` in the newest image, print and store its output
  local earlier="$1" status
  shift
  local mounts=(--volume "$results:/results:ro")
  [[ -z "$earlier" ]] || mounts+=(--volume "$earlier:/earlier:ro")
  in_image "$work/out" "$work/err" "${mounts[@]}" "$newest" \
    python -m image_classification report "$@"
  status=$?
  tee -a "$results/comparison.txt" <"$work/out"
  case "$status" in
    0) ;;
    4) regressed=true ;;
    *)
      failed=true
      echo "failed: $newest, report: exit $status, $(tail -n 1 "$work/err")" >&2
      ;;
  esac
}

# earlier_check: print the folder of the latest complete check with the same settings, if any.
earlier_check() {
  local file when found='' latest=''
  for file in "$(dirname "$results")"/*/summary.txt; do
    if grep -qFx "checked  $checked" "$file" 2>/dev/null &&
      grep -qE '^outcome  (held|regressed|recorded)$' "$file"; then
      when="$(sed -n 's/^date     //p' "$file")"
      if [[ "$when" < "$date" && "$when" > "$latest" ]]; then
        latest="$when"
        found="$(dirname "$file")"
      fi
    fi
  done
  echo "$found"
}

headline() { printf '\n== %s\n' "$*" | tee -a "$results/comparison.txt"; }

if ((${#images[@]} > 1)); then
  for at in "${!images[@]}"; do
    if ((at == 0)); then continue; fi
    headline "${images[0]} -> ${images[at]}"
    if [[ -z "${good[0]:-}" || -z "${good[at]:-}" ]]; then
      echo "not compared: one of them has no completed run" | tee -a "$results/comparison.txt"
      continue
    fi
    report '' compare "${thresholds[@]}" "/results/${folders[0]}" "/results/${folders[at]}"
  done
elif [[ -n "${good[0]:-}" ]]; then
  earlier="$(earlier_check)"
  if [[ -n "$earlier" ]]; then
    folder="${folders[0]}"
    if [[ ! -d "$earlier/$folder" ]]; then
      folder="$(sed -n 's/^  folder //p' "$earlier/summary.txt" | tail -n 1)"
    fi
    headline "$earlier/$folder -> ${images[0]}"
    report "$earlier" compare "${thresholds[@]}" "/earlier/$folder" "/results/${folders[0]}"
  else
    compared=false
    headline "${images[0]}: no earlier check with the same settings next to $results to compare with"
    read -ra runs <<<"${good[0]}"
    report '' combine "${runs[@]/#//results/${folders[0]}/}"
  fi
fi

status=0
if $compared; then outcome=held; else outcome=recorded; fi
if $regressed; then outcome=regressed status=4; fi
if $failed; then outcome=failed status=1; fi
write_summary
printf '\n%s: %s\n' "$outcome" "$results/summary.txt"
exit "$status"
