#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can show, in one command that needs nothing from the network:
#
#     scripts/gpu_check.sh [build kernels sanitizer bench-kernels compile step tensorrt engines]
#
# All stages by default; name some to run them alone. A stage that cannot run here is skipped with the reason; one that
# fails does not stop the others. A table comes last; logs and JSON are in out/gpu_check, and in $OUT if that is set.
#
#   PYTHON         interpreter with the packages (python3)
#   PYTHONPATH     folders with more packages; the source tree itself is put before them
#   STAGE_SECONDS  a stage is ended after this time (1800)
#   STEP_ARGS      more arguments for benchmarks/denoise_step.py, e.g. --paths eager,compiled-graph --engines DIR
set -uo pipefail
cd "$(dirname "$0")/.."

readonly PYTHON=${PYTHON:-python3} STAGE_SECONDS=${STAGE_SECONDS:-1800} RESULTS=out/gpu_check
readonly SKIPPED=77
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

skip() {
  echo "skipped: $*"
  return $SKIPPED
}

has_gpu() { nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | grep -q .; }

has_module() { "$PYTHON" -c "import $1" 2>/dev/null; }

# Both modules, for this GPU alone, into the source tree, where git ignores them.
stage_build() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
  has_module pybind11 || { skip "pybind11 is not installed"; return; }
  cmake -S . -B $RESULTS/build -DDISPOSE_RT_CUDA=ON -DDISPOSE_RT_WERROR=OFF \
    -DCMAKE_CUDA_ARCHITECTURES="${capability:-90}-real" -DCMAKE_CUDA_FLAGS="-Xptxas -v" \
    -DPython_EXECUTABLE="$(command -v "$PYTHON")" >$RESULTS/cmake.log 2>&1 || { tail -n 20 $RESULTS/cmake.log; return 1; }
  cmake --build $RESULTS/build --parallel >$RESULTS/compile.log 2>&1 || { tail -n 40 $RESULTS/compile.log; return 1; }
  cp $RESULTS/build/_kernels_*.so dispose_rt/
  echo "sm_${capability:-90}: $(grep -c 'stack frame' $RESULTS/compile.log) kernels, with a stack frame or spills:" \
    "$(grep 'stack frame' $RESULTS/compile.log | grep -vc ' 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads')"
}

stage_kernels() {
  has_gpu || { skip "no GPU"; return; }
  "$PYTHON" -m pytest -p no:cacheprovider tests/test_kernels.py
}

# Full-size launches, aligned and not, and the adversarial ones. The sanitizer makes the others too slow.
stage_sanitizer() {
  has_gpu || { skip "no GPU"; return; }
  command -v compute-sanitizer >/dev/null || { skip "compute-sanitizer is not on the PATH"; return; }
  local tool status=0
  for tool in memcheck racecheck; do
    echo "== $tool"
    compute-sanitizer --tool $tool --error-exitcode 9 --target-processes all \
      "$PYTHON" -m pytest -p no:cacheprovider tests/test_kernels.py -m cuda -k "full_size or anywhere or nothing" || status=1
  done
  return $status
}

stage_bench-kernels() { "$PYTHON" benchmarks/kernels.py --json $RESULTS/kernels.json; }

stage_compile() {
  has_gpu || { skip "no GPU"; return; }
  measure_step --compile-only
}

stage_step() {
  has_gpu || { skip "no GPU"; return; }
  measure_step --json $RESULTS/step.json
}

measure_step() {
  # shellcheck disable=SC2086  # several arguments
  "$PYTHON" benchmarks/denoise_step.py --packages $RESULTS/packages --budget-seconds $((STAGE_SECONDS - 20)) "$@" ${STEP_ARGS:-}
}

# A refusal is an answer: TensorRT for RTX does not list every GPU.
stage_tensorrt() {
  has_gpu || { skip "no GPU"; return; }
  local flavour ran=$SKIPPED
  for flavour in tensorrt_rtx tensorrt; do
    has_module $flavour || { echo "skipped: $flavour is not installed"; continue; }
    "$PYTHON" scripts/probe_tensorrt.py $flavour | tee $RESULTS/probe_$flavour.log
    ran=0
    if grep -q '^WRONG' $RESULTS/probe_$flavour.log; then return 1; fi
  done
  return $ran
}

stage_engines() {
  has_gpu || { skip "no GPU"; return; }
  "$PYTHON" -m pytest -p no:cacheprovider -m cuda --ignore tests/test_kernels.py --continue-on-collection-errors -rs
}

run_stage() {
  local stage=$1 begin=$SECONDS status
  echo "=== $stage"
  # a process group of its own, so that the limit ends what the stage has started
  timeout --kill-after=10 "$STAGE_SECONDS" bash "$0" --stage "$stage" 2>&1 | tee "$RESULTS/$stage.log"
  status=${PIPESTATUS[0]}
  case $status in
    0) status=passed ;;
    "$SKIPPED") status=$(grep -o 'skipped: .*' "$RESULTS/$stage.log" | tail -n 1) ;;
    124 | 137) status="ended after $STAGE_SECONDS s" ;;
    *) status="FAILED ($status)" ;;
  esac
  printf '%s\t%s\t%s\n' "$stage" $((SECONDS - begin)) "$status" >>$RESULTS/stages.tsv
}

# One table of everything that has been measured so far, earlier calls included.
print_table() {
  echo "=== results in $RESULTS"
  awk -F '\t' '{ printf "%-14s %5d s   %s\n", $1, $2, $3 }' $RESULTS/stages.tsv
  [[ " $* " == *" bench-kernels "* ]] && cat $RESULTS/bench-kernels.log
  [[ " $* " == *" step "* ]] && grep -E '^(eager|jit|compiled|engines|one tile)' $RESULTS/step.log
  return 0
}

copy_results() {
  tar -czf "$OUT/logs.tar.gz" -C $RESULTS --exclude=./build --exclude=./packages .
  cp $RESULTS/*.json $RESULTS/stages.tsv "$OUT" 2>/dev/null
}

main() {
  local all=(build kernels sanitizer bench-kernels compile step tensorrt engines) failed=0 stage
  local stages=("${@:-${all[@]}}")
  [[ $# -eq 0 ]] && stages=("${all[@]}")
  mkdir -p $RESULTS
  for stage in "${stages[@]}"; do
    [[ " ${all[*]} " == *" $stage "* ]] || { echo "$stage is no stage; choose from ${all[*]}" >&2; return 2; }
  done
  rm -f $RESULTS/stages.tsv
  for stage in "${stages[@]}"; do
    run_stage "$stage"
    [[ -n ${OUT:-} ]] && copy_results # after every stage: the machine may be taken away
  done
  print_table "${stages[@]}"
  grep -qE 'FAILED|ended after' $RESULTS/stages.tsv && failed=1
  return $failed
}

if [[ ${1:-} == --stage ]]; then
  "stage_$2"
else
  main "$@"
fi
