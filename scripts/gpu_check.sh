#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can show, in one command that needs nothing from the network:
#
#     scripts/gpu_check.sh [--quick] [STAGE ...]
#
# All stages in the order below by default; name some to run them alone; --quick leaves out what takes long, and begins
# with the kernels. A stage
# that cannot run here is skipped with the reason; one that fails does not stop the others. A table comes last; logs and
# JSON are in out/gpu_check, and in $OUT if that is set. Exit status: 0, 1 if a stage failed, 2 for an unknown stage.
#
#   build          both kernel modules for this GPU, into the source tree; registers and spills in registers.log
#   tests          all tests that need a GPU; with --quick, those of the device and the kernels
#   compile        ControlNet and UNet at full size as AOTInductor packages, random weights
#   graph          a whole denoising step of the runtime as one graph, against eager PyTorch in the same process
#   bench-kernels  every kernel at full size, as a share of what a copy moves
#   engines        all other networks of that directory
#   latency        whole animations, every network by itself, and eager PyTorch in the same process
#   sanitizer      memcheck and racecheck over the kernels' tests
#   step           the two networks in eager PyTorch and compiled, each with and without a graph
#   tensorrt       whether TensorRT runs on this GPU
#   baseline       eager PyTorch alone, a longer clip
#
#   PYTHON          interpreter with the packages (python3)
#   PYTHONPATH      folders with more packages; the source tree itself is put before them
#   RESULTS         folder to write (out/gpu_check)
#   BUDGET_SECONDS  for everything (1500, with --quick 720); what does not fit is ended or skipped
#   STAGE_SECONDS   ends every stage after this time, in place of its own limit
#   GRAPH_ARGS, LATENCY_ARGS, STEP_ARGS, BASELINE_ARGS   more arguments for the benchmarks of these names
set -uo pipefail

# Paths that the caller gives count from the caller's folder; everything else happens in the source tree.
for name in PYTHON RESULTS OUT; do
  [[ -z ${!name:-} || ${!name} == /* ]] && continue
  [[ $name == PYTHON && $PYTHON != */* ]] || export "$name=$PWD/${!name}" # but for a program on the PATH
done
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
readonly SCRIPT=$PWD/scripts/gpu_check.sh

readonly STAGES=(build tests compile graph bench-kernels engines latency sanitizer step tensorrt baseline)
readonly QUICK=(build tests bench-kernels sanitizer compile graph)
readonly PYTHON=${PYTHON:-python3} RESULTS=${RESULTS:-out/gpu_check} SKIPPED=77
readonly ENGINES=$RESULTS/engines/full
FIND_MISSING='import importlib.util as u, sys; print(*[name for name in sys.argv[1:] if not u.find_spec(name)])'
export PYTHONPATH=$PWD:$PWD/export${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 RESULTS

# Seconds after which a stage is ended.
limit_of() {
  case $1 in
    tests | engines) echo 480 ;;
    compile) echo 420 ;;
    latency | step) echo 360 ;;
    graph | baseline) echo 240 ;;
    *) echo 180 ;;
  esac
}

skip() {
  echo "skipped: $*"
  return $SKIPPED
}

need_gpu() {
  nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | grep -q . || skip "no GPU (nvidia-smi names none)"
}

need_modules() {
  local missing
  missing=$("$PYTHON" -c "$FIND_MISSING" "$@") || { skip "$PYTHON does not run"; return; }
  [[ -z $missing ]] || skip "not installed: $missing"
}

need_programs() {
  local program
  for program in "$@"; do
    command -v "$program" >/dev/null || { skip "$program is not on the PATH"; return; }
  done
}

need_kernels() {
  "$PYTHON" -c 'import dispose_rt._kernels_cpu, dispose_rt._kernels_cuda' 2>/dev/null ||
    skip "the kernels are not built: run the stage build"
}

# Strict settings would end the build at the first spill; here it is a number in the report, and a failed stage.
stage_build() {
  local capability report=$RESULTS/registers.log bad module part
  need_modules pybind11 || return
  need_programs cmake nvcc || return
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
  rm -f "$RESULTS/build/cuda_resources.log"
  cmake -S . -B "$RESULTS/build" -DDISPOSE_RT_CUDA=ON -DDISPOSE_RT_WERROR=OFF -DDISPOSE_RT_ALLOW_SPILLS=ON \
    -DCMAKE_CUDA_ARCHITECTURES="${capability:-90}-real" -DPython_EXECUTABLE="$(command -v "$PYTHON")" \
    >"$RESULTS/cmake.log" 2>&1 || { tail -n 20 "$RESULTS/cmake.log"; return 1; }
  cmake --build "$RESULTS/build" --parallel --clean-first >"$RESULTS/compile.log" 2>&1 ||
    { tail -n 40 "$RESULTS/compile.log"; return 1; }
  for module in "$RESULTS"/build/_kernels_*.so; do
    part=dispose_rt/${module##*/}.part # by rename: a process that runs keeps its own
    cp "$module" "$part" && mv "$part" "${part%.part}" || return 1
  done
  cp "$RESULTS/build/cuda_resources.log" "$report" || return 1
  bad=$(grep 'stack frame' "$report" | grep -vc ' 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads')
  echo "sm_${capability:-90}: $(grep -c 'stack frame' "$report") kernels, at most $(most_registers "$report")" \
    "registers; with a stack frame or spills: $bad"
  [[ $bad -eq 0 ]]
}

most_registers() { grep -o 'Used [0-9]* registers' "$1" | grep -o '[0-9]*' | sort -n | tail -n 1; }

stage_tests() {
  need_gpu && need_modules pytest pytest_timeout filelock numpy cv2 av && need_kernels || return
  local paths=()
  [[ -n ${QUICK_CHECK:-} ]] && paths=(tests/device tests/kernels)
  "$PYTHON" -m pytest -p no:cacheprovider -m cuda -rs --continue-on-collection-errors "${paths[@]}"
}

build_networks() {
  "$PYTHON" export/build_engines.py --random-weights full --backend aotinductor --precision fp16 "$@"
}

need_exporter() { need_gpu && need_modules torch diffusers transformers onnx onnxscript filelock safetensors av; }

# Every part in a directory and a process of its own, all at once; the whole directory then takes them over by link.
stage_compile() {
  need_exporter || return
  build_parts controlnet unet
  build_networks --output "$ENGINES" --only controlnet,unet && ls -l "$ENGINES"
}

stage_engines() {
  need_exporter || return
  build_parts controlnet unet dift,point_encoder vae_decoder,vae_encoder,pose_net \
    image_encoder,motion_encoder,cmp_image_encoder,cmp_flow_decoder
  build_networks --output "$ENGINES"
}

build_parts() {
  local part
  for part in "$@"; do
    build_networks --output "$RESULTS/engines/${part%%,*}" --only "$part" &
  done
  wait # one that failed is built again, and says why, in the whole directory
}

stage_graph() {
  need_gpu && need_modules torch diffusers cuda av && need_kernels || return
  [[ -f $ENGINES/.build/unet.json ]] || { skip "no full-size packages: run the stage compile"; return; }
  # shellcheck disable=SC2086  # several arguments
  "$PYTHON" benchmarks/speed/graph_step.py "$ENGINES" --baseline --baseline-seconds 120 \
    --json "$RESULTS/graph.json" ${GRAPH_ARGS:-}
}

stage_bench-kernels() {
  need_gpu && need_modules cuda numpy && need_kernels || return
  "$PYTHON" benchmarks/speed/kernel_times.py --json "$RESULTS/kernels.json"
}

stage_latency() {
  need_gpu && need_modules torch diffusers cuda av onnxruntime && need_kernels || return
  [[ -f $ENGINES/manifest.json ]] || { skip "no full-size engines: run the stages compile and engines"; return; }
  # shellcheck disable=SC2086  # several arguments
  "$PYTHON" benchmarks/speed/latency.py "$ENGINES" --frames 35 --runs 2 --networks --baseline --baseline-seconds 120 \
    --json "$RESULTS/latency.json" --plot "$RESULTS/latency.png" ${LATENCY_ARGS:-}
}

# Full-size launches and the adversarial ones; the sanitizer makes the others too slow.
stage_sanitizer() {
  need_gpu && need_programs compute-sanitizer && need_modules pytest pytest_timeout filelock && need_kernels || return
  sanitize memcheck "full_size or anywhere or nothing or outside" || return
  [[ -n ${QUICK_CHECK:-} ]] || sanitize racecheck "anywhere or nothing or outside"
}

sanitize() {
  echo "== $1"
  compute-sanitizer --tool "$1" --error-exitcode 9 --target-processes all \
    "$PYTHON" -m pytest -p no:cacheprovider tests/kernels -m cuda -k "$2"
}

stage_step() {
  need_gpu && need_modules torch diffusers av || return
  # shellcheck disable=SC2086  # several arguments
  "$PYTHON" benchmarks/speed/denoise_step.py --packages "$RESULTS/packages" --budget-seconds $((LIMIT - 20)) \
    --json "$RESULTS/step.json" ${STEP_ARGS:-}
}

# A refusal is a result: TensorRT for RTX does not list every GPU.
stage_tensorrt() {
  need_gpu || return
  local flavour ran=$SKIPPED
  for flavour in tensorrt_rtx tensorrt; do
    need_modules $flavour cuda || continue
    "$PYTHON" scripts/probe_tensorrt.py $flavour | tee "$RESULTS/probe_$flavour.log"
    ran=0
    if grep -q '^WRONG' "$RESULTS/probe_$flavour.log"; then return 1; fi
  done
  return $ran
}

stage_baseline() {
  need_gpu && need_modules torch diffusers av || return
  # shellcheck disable=SC2086  # several arguments
  "$PYTHON" benchmarks/reference/baseline.py --budget-seconds $((LIMIT / 2)) --json "$RESULTS/baseline.json" ${BASELINE_ARGS:-}
}

# Runs a stage within its own limit and what is left of the budget.
run_stage() {
  local stage=$1 begin=$SECONDS left=$((BUDGET - SECONDS)) limit status
  limit=${STAGE_SECONDS:-$(limit_of "$stage")}
  [[ $limit -gt $left ]] && limit=$left
  echo "=== $stage"
  if [[ $limit -lt 5 ]]; then
    echo "skipped: no time is left of $BUDGET s" | tee "$RESULTS/$stage.log"
    status=$SKIPPED
  else
    # a process group of its own, so that the limit ends what the stage has started
    LIMIT=$limit timeout --kill-after=10 "$limit" bash "$SCRIPT" --stage "$stage" 2>&1 | tee "$RESULTS/$stage.log"
    status=${PIPESTATUS[0]}
  fi
  case $status in
    0) status=passed ;;
    "$SKIPPED") status=$(grep -o 'skipped: .*' "$RESULTS/$stage.log" | tail -n 1) ;;
    124 | 137) status="FAILED: ended after $limit s" ;;
    *) status="FAILED with exit status $status" ;;
  esac
  printf '%s\t%s\t%s\n' "$stage" $((SECONDS - begin)) "$status" >>"$RESULTS/stages.tsv"
}

# What the stages measured, and then the one table of them all.
print_results() {
  local stage
  echo "=== results in $RESULTS"
  for stage in "$@"; do
    grep -q "^$stage"$'\t.*\tpassed' "$RESULTS/stages.tsv" || continue
    case $stage in
      build) pattern='^sm_' ;;
      tests | sanitizer) pattern='passed|ERROR SUMMARY|RACECHECK SUMMARY' ;;
      graph) pattern='^(queued|one graph|captured|latents|tile-step)' ;;
      bench-kernels) pattern='GB/s' ;;
      latency) pattern='^(tile-step|s/frame|  (total|per frame|first frame|most memory|tile-step|graph))' ;;
      step) pattern='^(eager|jit|compiled|engines|one tile)' ;;
      tensorrt) pattern='^(RUNS|REFUSED)' ;;
      baseline) pattern='s/frame$|  (DisPose|MimicMotion)' ;;
      *) continue ;;
    esac
    grep -E "$pattern" "$RESULTS/$stage.log" | sed "s/^/$stage: /"
  done
  awk -F '\t' '{ printf "%-14s %5d s   %s\n", $1, $2, $3 }' "$RESULTS/stages.tsv"
}

copy_results() {
  tar -czf "$OUT/logs.tar.gz" -C "$RESULTS" --exclude=./build --exclude=./packages --exclude=./engines .
  cp "$RESULTS"/*.json "$RESULTS"/*.png "$RESULTS/stages.tsv" "$OUT" 2>/dev/null
}

main() {
  local stages=("${STAGES[@]}") stage
  BUDGET=${BUDGET_SECONDS:-1500}
  export QUICK_CHECK=
  if [[ ${1:-} == --quick ]]; then
    shift
    stages=("${QUICK[@]}") BUDGET=${BUDGET_SECONDS:-720}
    QUICK_CHECK=1
  fi
  [[ $# -gt 0 ]] && stages=("$@")
  for stage in "${stages[@]}"; do
    [[ " ${STAGES[*]} " == *" $stage "* ]] || { echo "$stage is no stage; choose from ${STAGES[*]}" >&2; return 2; }
  done
  mkdir -p "$RESULTS"
  rm -f "$RESULTS/stages.tsv"
  for stage in "${stages[@]}"; do
    run_stage "$stage"
    [[ -n ${OUT:-} ]] && copy_results # after every stage: the machine may be taken away
  done
  print_results "${stages[@]}"
  ! grep -q 'FAILED' "$RESULTS/stages.tsv"
}

if [[ ${1:-} == --stage ]]; then
  "stage_$2"
else
  main "$@"
fi
