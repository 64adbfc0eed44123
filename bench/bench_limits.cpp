// What the machine reaches: one JSON line for each instruction set and number of threads.
//   bench_limits [--threads=1,2] [--isa=avx2,avx512,avx512_bf16]
#include <cstdio>
#include <string>

#include "bench/bench.h"
#include "pagedcore/cpu_limits.h"
#include "pagedcore/error.h"

int main(int argc, char** argv) {
  const pagedcore::bench::Arguments arguments(argc, argv);
  const std::string commit = pagedcore::bench::commit();
  std::string isas = arguments.text("isa", "avx2,avx512,avx512_bf16,neon") + ",";
  while (!isas.empty()) {
    const std::string isa = isas.substr(0, isas.find(','));
    isas.erase(0, isa.size() + 1);
    for (const int threads : arguments.numbers("threads", "1,2")) {
      try {
        const auto limits = pagedcore::measure_cpu_limits({.num_threads = threads, .isa = isa});
        std::printf(
            "{\"bench\": \"limits\", \"commit\": \"%s\", \"isa\": \"%s\", \"threads\": %d, "
            "\"dram_gb_s\": %.1f, \"l2_gb_s\": %.1f, \"f32_gflop_s\": %.1f, "
            "\"bf16_gflop_s\": %.1f}\n",
            commit.c_str(), isa.c_str(), threads, limits.dram_gb_s, limits.l2_gb_s,
            limits.f32_gflop_s, limits.bf16_gflop_s);
        std::fflush(stdout);
      } catch (const pagedcore::InvalidArgument&) {
        break;  // not of this processor
      }
    }
  }
}
