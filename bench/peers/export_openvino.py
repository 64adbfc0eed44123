"""Converts a model for OpenVINO beside itself: MODEL_DIR -> MODEL_DIR-ov-{bf16,int8,int4}.

python bench/peers/export_openvino.py MODEL_DIR bf16
"""

from __future__ import annotations

import argparse

import openvino
from openvino_tokenizers import convert_tokenizer
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import AutoTokenizer

QUANTIZATION = {
    "bf16": None,
    "int8": OVWeightQuantizationConfig(bits=8),
    "int4": OVWeightQuantizationConfig(bits=4, sym=True, group_size=64, ratio=1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir")
    parser.add_argument("weights", choices=sorted(QUANTIZATION))
    args = parser.parse_args()
    out_dir = f"{args.model_dir.rstrip('/')}-ov-{args.weights}"
    quantization = QUANTIZATION[args.weights]
    options = {"quantization_config": quantization} if quantization else {"load_in_8bit": False}
    model = OVModelForCausalLM.from_pretrained(
        args.model_dir, export=True, compile=False, **options
    )
    model.save_pretrained(out_dir)
    tokenizer = AutoTokenizer.from_pretrained(args.model_dir)
    tokenizer.save_pretrained(out_dir)
    encoder, decoder = convert_tokenizer(tokenizer, with_detokenizer=True)
    openvino.save_model(encoder, f"{out_dir}/openvino_tokenizer.xml")
    openvino.save_model(decoder, f"{out_dir}/openvino_detokenizer.xml")


if __name__ == "__main__":
    main()
