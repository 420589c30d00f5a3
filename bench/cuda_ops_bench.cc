// Each operation of the network on a GPU, at the shapes of ingest and decode: time, bytes that must
// move, operations that must be done, and the share of what the same device reaches, in the same
// run, on a plain copy and on a large product of bf16 matrices (cuda_ops/op_meter.h).
//
// Usage: cuda_ops_bench [small|370m] [rows] [own|ingest] [halo]
//        cuda_ops_bench ssd
//        cuda_ops_bench decode
// `ingest`: without decode. `halo`: tokens behind a chunk that its encoder sees. `own`: products of
// many rows by our own kernel, without cuBLASLt. `ssd`: the recurrence alone, at the shapes of
// Mamba-2 130M over 16384 tokens, for bench/peers/ssd_peer.py beside it. `decode`: one step of
// readers that advance by a token each, with all its operations but the landmark scan.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "bench/cuda_ops/decode_ops.h"
#include "bench/cuda_ops/decode_steps.h"
#include "bench/cuda_ops/ingest_ops.h"
#include "bench/cuda_ops/network_shape.h"
#include "bench/cuda_ops/op_meter.h"
#include "bench/cuda_ops/ssd_ops.h"
#include "bench/or_die.h"
#include "kernels/backend.h"

namespace mneme::bench {
namespace {

void RunSsd() {
  const std::unique_ptr<Backend> backend = OrDie(CreateCudaBackend({}));
  std::printf("device %s\nshapes Mamba-2 130M\n", backend->description().c_str());
  OpMeter meter(*backend);
  meter.PrintHead();
  MeasureSsd(meter, kMamba130m, 16384);
}

void RunDecode() {
  const std::unique_ptr<Backend> backend = OrDie(CreateCudaBackend({}));
  std::printf("device %s\nshapes shipped bundle\n", backend->description().c_str());
  OpMeter meter(*backend);
  meter.PrintHead();
  for (const int64_t readers : {1, 16, 64, 256}) MeasureDecodeSteps(meter, kSmall, readers);
  MeasureDecodeOpsInGraphs(meter, kSmall);
}

int Main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "ssd") == 0) {
    RunSsd();
    return 0;
  }
  if (argc > 1 && std::strcmp(argv[1], "decode") == 0) {
    RunDecode();
    return 0;
  }
  const bool large = argc > 1 && std::strcmp(argv[1], "370m") == 0;
  const int64_t rows = argc > 2 ? std::atoll(argv[2]) : 131072;
  const bool own = argc > 3 && std::strcmp(argv[3], "own") == 0;
  const bool ingest = argc > 3 && std::strcmp(argv[3], "ingest") == 0;
  const int64_t halo = argc > 4 ? std::atoll(argv[4]) : 0;
  if (halo < 0) {
    std::fprintf(stderr, "a halo is of 0 or more tokens\n");
    return 2;
  }
  if (rows < 64 || (rows > 4096 && rows % 4096 != 0) || rows % 64 != 0) {
    std::fprintf(stderr, "rows must be a multiple of 64, above 4096 of 4096\n");
    return 2;
  }
  const std::unique_ptr<Backend> backend = OrDie(CreateCudaBackend({.cublas_lt = !own}));
  std::printf("device %s\nshapes %s, %d repetitions of at least %.0f ms\n",
              backend->description().c_str(), large ? "RAMba-370M" : "shipped bundle", kRepetitions,
              kSecondsPerRepetition * 1e3);
  NetworkShape shape = large ? k370m : kSmall;
  shape.halo = halo;
  OpMeter meter(*backend);
  meter.PrintHead();
  MeasureIngest(meter, shape, rows);
  if (!ingest) MeasureDecodeOps(meter, shape);
  return 0;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Main(argc, argv); }
