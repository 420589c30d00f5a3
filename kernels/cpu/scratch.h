// Scratch memory of one thread, kept between calls.

#ifndef MNEME_KERNELS_CPU_SCRATCH_H_
#define MNEME_KERNELS_CPU_SCRATCH_H_

#include <cstdint>

namespace mneme {

// At least `bytes` of memory that belongs to the calling thread, aligned to 64 bytes, contents
// undefined; valid until the thread calls again. Grows to the largest request and is freed when the
// thread ends. One user at a time: a task that holds it must not run other tasks.
void* ThreadScratch(int64_t bytes);

}  // namespace mneme

#endif  // MNEME_KERNELS_CPU_SCRATCH_H_
