#!/bin/bash
# Everything that needs a GPU, in one call: builds (unless PAGEDCORE_CUDA_OPS names a built test
# library), checks, then times. Results go to ${OUT:-bench/results}.
# Usage: bench/run_on_gpu.sh [tests|sanitize|ops|step]...   default: all of them
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-bench/results}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONPATH=python:$PYTHONPATH
parts=${*:-tests sanitize ops step}
nvidia-smi --query-gpu=name,driver_version,clocks.sm,memory.total --format=csv,noheader
if [ -z "$PAGEDCORE_CUDA_OPS" ]; then
  cmake --preset cuda -DCMAKE_CUDA_ARCHITECTURES=native -DPython_EXECUTABLE="$(command -v python3)" \
    >"$out/configure.log" || exit 1
  cmake --build --preset cuda >"$out/build.log" || { tail -40 "$out/build.log"; exit 1; }
  ln -sf "$PWD"/build/cuda/cpp/_core*.so python/pagedcore/
fi
for part in $parts; do
  echo "== $part"
  case $part in
    tests) python3 -m pytest tests/cuda -q --maxfail=60 --tb=short >"$out/tests.log" 2>&1
           grep -E "^(FAILED|ERROR)|passed|failed" "$out/tests.log" ;;
    sanitize)
      for tool in memcheck racecheck; do
        echo "-- $tool"
        timeout 200 compute-sanitizer --tool $tool --error-exitcode 9 --print-limit 20 \
          python3 -m pytest tests/cuda -q -x -k "sanitized" >"$out/$tool.log" 2>&1
        echo "exit $?"; grep -E "ERROR SUMMARY|RACECHECK SUMMARY|passed|failed" "$out/$tool.log"
      done ;;
    ops) python3 bench/bench_cuda_ops.py --out "$out/cuda_ops.jsonl" ;;
    step) for model in 1b 8b; do "${PAGEDCORE_CUDA_STEP:-build/cuda/bench/bench_cuda_step}" $model; done | tee "$out/cuda_step.jsonl" ;;
  esac
done
