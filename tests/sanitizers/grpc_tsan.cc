// Tells ThreadSanitizer that a call orders what its two ends do. The distribution's gRPC is not
// built with TSan, and what a test's client did before a call reaches the server's threads over a
// socket and queues that TSan does not see. The functions here stand before the library's in symbol
// lookup: each is one at which a program enters gRPC or is called back by it, and each announces
// release and acquire at one address, as one socket between all threads would. Linked only into
// builds with -fsanitize=thread.

#include <dlfcn.h>
#include <grpc/grpc.h>
#include <sanitizer/tsan_interface.h>

#include <cstdlib>

namespace {

char socket_between_all;

void Order() {
  __tsan_acquire(&socket_between_all);
  __tsan_release(&socket_between_all);
}

template <typename Function>
Function* Library(const char* symbol) {
  void* address = dlsym(RTLD_NEXT, symbol);
  if (address == nullptr) abort();
  return reinterpret_cast<Function*>(address);
}

}  // namespace

#define MNEME_REAL(function) static auto* const real = Library<decltype(function)>(#function)

extern "C" {

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag,
                                      void* reserved) {
  MNEME_REAL(grpc_call_start_batch);
  Order();
  return real(call, ops, count, tag, reserved);
}

// Around every batch of a call: taken when it starts, given back before its callback.
void grpc_call_ref(grpc_call* call) {
  MNEME_REAL(grpc_call_ref);
  Order();
  real(call);
}

void grpc_call_unref(grpc_call* call) {
  MNEME_REAL(grpc_call_unref);
  Order();
  real(call);
}

// A new call at the server, before its handler.
void* grpc_call_arena_alloc(grpc_call* call, size_t size) {
  MNEME_REAL(grpc_call_arena_alloc);
  Order();
  return real(call, size);
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag,
                                       gpr_timespec deadline, void* reserved) {
  MNEME_REAL(grpc_completion_queue_pluck);
  Order();
  const grpc_event event = real(queue, tag, deadline, reserved);
  Order();
  return event;
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline,
                                      void* reserved) {
  MNEME_REAL(grpc_completion_queue_next);
  Order();
  const grpc_event event = real(queue, deadline, reserved);
  Order();
  return event;
}

}  // extern "C"
