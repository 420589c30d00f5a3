#include "kernels/cpu/scratch.h"

#include <cstdlib>

#include "common/check.h"

namespace mneme {
namespace {

struct Scratch {
  void* data = nullptr;
  int64_t bytes = 0;
  ~Scratch() { std::free(data); }
};

}  // namespace

void* ThreadScratch(int64_t bytes) {
  thread_local Scratch scratch;
  if (bytes > scratch.bytes) {
    std::free(scratch.data);
    scratch.bytes = (bytes + 4095) / 4096 * 4096;
    scratch.data = std::aligned_alloc(64, scratch.bytes);
    MNEME_CHECK(scratch.data != nullptr);
  }
  return scratch.data;
}

}  // namespace mneme
