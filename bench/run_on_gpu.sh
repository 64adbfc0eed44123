#!/bin/bash
# Everything that needs a GPU, in one call: builds, checks, then times. No part runs longer than its
# limit, and all of them together no longer than ${SECONDS_IN_ALL:-555}.
# Results and logs go to ${OUT:-bench/results}; the build to ${BUILD:-build/cuda}.
# Usage: bench/run_on_gpu.sh [build|linear|tests|step|ops|profile|serve|peer|sanitize]...
#   default: all of them, in this order
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-bench/results}
build=${BUILD:-build/cuda}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD/python:$PWD/tests:$PYTHONPATH
export PAGEDCORE_CUDA_OPS=${PAGEDCORE_CUDA_OPS:-$build/tests/cuda/libpagedcore_cuda_ops.so}
# Where pip's nvidia packages lie, for programs that are not Python.
export PAGEDCORE_CUBLASLT=${PAGEDCORE_CUBLASLT:-$(python3 -c '
import glob, nvidia
print(*glob.glob(list(nvidia.__path__)[0] + "/cu13/lib/libcublasLt.so.13"))' 2>/dev/null)}
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
[ "$capability" = 90 ] && capability=90a
nvidia-smi --query-gpu=name,driver_version,clocks.sm,memory.total --format=csv,noheader
# Of the tree that is measured; to be given where there is no repository.
export COMMIT=${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)

# limited SECONDS COMMAND...: stopped at its limit, or at the whole run's.
limited() {
  local left=$((${SECONDS_IN_ALL:-555} - SECONDS)) limit=$1
  shift
  [ "$left" -lt "$limit" ] && limit=$left
  [ "$limit" -lt 5 ] && { echo "no time left for: $*"; return 124; }
  timeout -k 5 "$limit" "$@"
  local status=$?
  [ $status -ge 124 ] && echo "stopped after $limit s: $*"
  return $status
}
# checked NAME SECONDS PYTEST-ARGUMENTS...
checked() {
  local name=$1 limit=$2
  shift 2
  limited "$limit" python3 -m pytest -q --maxfail=60 --tb=short "$@" >"$out/$name.log" 2>&1
  grep -E "^(FAILED|ERROR)|passed|failed|stopped after" "$out/$name.log" | cut -c1-150 | tail -25
  grep -E "^E  " "$out/$name.log" | cut -c1-160 | sort | uniq -c | sort -rn | head -8
}

for part in ${*:-build linear tests step ops profile serve peer sanitize}; do
  echo "== $part"
  begin=$SECONDS
  case $part in
    build)
      limited 60 cmake -G Ninja -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DPAGEDCORE_CUDA=ON \
        -DCMAKE_CUDA_ARCHITECTURES="$capability-real" -DPAGEDCORE_TESTS=ON -DPAGEDCORE_BENCH=ON \
        -DPython_EXECUTABLE="$(command -v python3)" >"$out/build.log" 2>&1 || cat "$out/build.log"
      limited 280 cmake --build "$build" --target pagedcore _core pagedcore_cuda_ops bench_cuda_step \
        >>"$out/build.log" 2>&1 || { grep -A5 -E "error|stopped" "$out/build.log" | head -60; exit 1; }
      ln -sf "$(realpath "$build")"/cpp/_core*.so python/pagedcore/ ;;
    linear) checked linear 60 tests/cuda/test_ops.py -k "linear or rows" ;;
    tests) checked tests 150 tests/cuda -k "not sanitized" ;;
    step)
      copy=$(limited 30 python3 -c '
import torch
a = torch.randn(1 << 28, device="cuda"); b = torch.empty_like(a); b.copy_(a)
start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
start.record(); [b.copy_(a) for _ in range(8)]; end.record(); end.synchronize()
print(8 * 8 * a.numel() / start.elapsed_time(end) / 1e9)')
      {
        echo "{\"bench\": \"cuda_step\", \"driver\": \"$driver\", \"commit\": \"$COMMIT\"," \
          "\"copy_tb_per_s\": $copy}"
        for model in 1b 8b; do limited 60 "$build"/bench/bench_cuda_step $model "$copy"; done
      } | tee "$out/cuda_step.jsonl" ;;
    ops) limited 150 python3 bench/bench_cuda_ops.py | tee "$out/cuda_ops.jsonl" |
      sed -E 's/[{}"]|bench: cuda_ops, name: //g' | cut -c1-110 ;;
    profile) limited 40 python3 bench/bench_cuda_serve.py profile \
      --out "$out/profile.txt" ;;
    serve) limited 40 python3 bench/bench_cuda_serve.py ours --out "$out/cuda_serve.jsonl" ;;
    peer) limited 90 python3 bench/bench_cuda_serve.py transformers --out "$out/cuda_serve.jsonl" \
      2>&1 | grep -vE "Warning|^$" | tail -12 ;;
    sanitize)
      # A process a test: what racecheck notes down takes long to look through at the end.
      python3 -m pytest tests/cuda -q --collect-only -k sanitized | grep :: >"$out/sanitized.txt"
      for tool in memcheck racecheck; do
        limited 170 xargs -a "$out/sanitized.txt" -P 8 -I TEST compute-sanitizer --tool $tool \
          --error-exitcode 9 --print-limit 20 python3 -m pytest -q -p no:cacheprovider TEST 2>&1
        echo "$tool: exit $?"
      done >"$out/sanitize.log"
      grep -E "SUMMARY|passed|failed|stopped|exit" "$out/sanitize.log" | sort | uniq -c ;;
  esac
  echo "-- $part: $((SECONDS - begin)) s"
done
