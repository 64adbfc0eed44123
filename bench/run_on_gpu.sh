#!/bin/bash
# Everything that needs a GPU, in one call: builds, checks, then times.
# Results and logs go to ${OUT:-bench/results}; the build to ${BUILD:-build/cuda}.
# Usage: bench/run_on_gpu.sh [build|tests|sanitize|ops|step]...   default: all of them
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
for part in ${*:-build tests sanitize ops step}; do
  echo "== $part"
  begin=$SECONDS
  case $part in
    build)
      cmake -G Ninja -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DPAGEDCORE_CUDA=ON \
        -DCMAKE_CUDA_ARCHITECTURES="$capability-real" -DPAGEDCORE_TESTS=ON -DPAGEDCORE_BENCH=ON \
        -DPython_EXECUTABLE="$(command -v python3)" >"$out/configure.log" 2>&1 || cat "$out/configure.log"
      cmake --build "$build" >"$out/build.log" 2>&1 || { grep -A5 error "$out/build.log" | head -60; exit 1; }
      ln -sf "$(realpath "$build")"/cpp/_core*.so python/pagedcore/ ;;
    tests)
      python3 -m pytest tests/cuda -q --maxfail=80 --tb=short >"$out/tests.log" 2>&1
      grep -E "^(FAILED|ERROR)|passed|failed" "$out/tests.log"
      grep -E "^E  " "$out/tests.log" | cut -c1-200 | sort | uniq -c | sort -rn | head -15 ;;
    sanitize)
      for tool in memcheck racecheck; do
        timeout 250 compute-sanitizer --tool $tool --error-exitcode 9 --print-limit 20 \
          python3 -m pytest tests/cuda -q -x -k sanitized >"$out/$tool.log" 2>&1
        echo "$tool: exit $?"
        grep -E "ERROR SUMMARY|RACECHECK SUMMARY|passed|failed" "$out/$tool.log"
      done ;;
    ops) python3 bench/bench_cuda_ops.py --out "$out/cuda_ops.jsonl" ;;
    step)
      for model in 1b 8b; do "$build"/bench/bench_cuda_step $model; done | tee "$out/cuda_step.jsonl" ;;
  esac
  echo "-- $part: $((SECONDS - begin)) s"
done
