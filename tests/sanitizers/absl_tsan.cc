// Tells ThreadSanitizer what abseil's locks mean. The distribution's libabsl_synchronization is not
// built with TSan, so TSan sees none of the order that absl::Mutex, CondVar, Notification and
// BlockingCounter establish and would report a race on everything they guard. The definitions here
// stand before the library's in symbol lookup (also for calls from gRPC), announce acquire and
// release, and call the library's own. Linked only into builds with -fsanitize=thread.
//
// Reads inside a call are ignored: Unlock and Wait evaluate the conditions of other waiters, under
// the lock but after the release was announced.

#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace {

// The library's own search for cycles of locks keeps a graph under locks that TSan does not see
// either; TSan finds such cycles itself.
[[maybe_unused]] const bool no_cycle_search = [] {
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  return true;
}();

class IgnoreReads {
 public:
  IgnoreReads() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~IgnoreReads() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

// Acquires when the scope ends, after the library's call has returned.
struct Acquire {
  const void* address;
  ~Acquire() { __tsan_acquire(const_cast<void*>(address)); }
};

#define MNEME_STRING_(text) #text
#define MNEME_STRING(text) MNEME_STRING_(text)

// The library's own function of a mangled name, "_ZN<qualifier>4absl<inline namespace><rest>".
template <typename Function>
Function Library(const char* qualifier, const char* rest) {
  constexpr char kNamespace[] = MNEME_STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  char symbol[256];
  snprintf(symbol, sizeof(symbol), "_ZN%s4absl%zu%s%s", qualifier, sizeof(kNamespace) - 1,
           kNamespace, rest);
  void* address = dlsym(RTLD_NEXT, symbol);
  if (address == nullptr) abort();
  return reinterpret_cast<Function>(address);
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

#define MNEME_REAL(type, qualifier, rest) static const auto real = Library<type>(qualifier, rest)

void Mutex::Lock() {
  MNEME_REAL(void (*)(Mutex*), "", "5Mutex4LockEv");
  real(this);
  __tsan_acquire(this);
}

void Mutex::Unlock() {
  MNEME_REAL(void (*)(Mutex*), "", "5Mutex6UnlockEv");
  __tsan_release(this);
  IgnoreReads ignore;
  real(this);
}

bool Mutex::TryLock() {
  MNEME_REAL(bool (*)(Mutex*), "", "5Mutex7TryLockEv");
  const bool locked = real(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::ReaderLock() {
  MNEME_REAL(void (*)(Mutex*), "", "5Mutex10ReaderLockEv");
  real(this);
  __tsan_acquire(this);
}

void Mutex::ReaderUnlock() {
  MNEME_REAL(void (*)(Mutex*), "", "5Mutex12ReaderUnlockEv");
  __tsan_release(this);
  IgnoreReads ignore;
  real(this);
}

bool Mutex::ReaderTryLock() {
  MNEME_REAL(bool (*)(Mutex*), "", "5Mutex13ReaderTryLockEv");
  const bool locked = real(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

// Waits that return with the lock held, and either gave it up meanwhile or did not have it.
#define MNEME_WAIT(returned, method, parameters, arguments, type, rest) \
  returned method parameters {                                          \
    MNEME_REAL(type, "", rest);                                         \
    __tsan_release(this);                                               \
    Acquire acquire{this};                                              \
    IgnoreReads ignore;                                                 \
    return real arguments;                                              \
  }

using When = void (*)(Mutex*, const Condition&);
using WhenTimeout = bool (*)(Mutex*, const Condition&, Duration);
using WhenDeadline = bool (*)(Mutex*, const Condition&, Time);

MNEME_WAIT(void, Mutex::Await, (const Condition& when), (this, when), When,
           "5Mutex5AwaitERKNS0_9ConditionE")
MNEME_WAIT(bool, Mutex::AwaitWithTimeout, (const Condition& when, Duration timeout),
           (this, when, timeout), WhenTimeout,
           "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE")
MNEME_WAIT(bool, Mutex::AwaitWithDeadline, (const Condition& when, Time deadline),
           (this, when, deadline), WhenDeadline,
           "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE")
MNEME_WAIT(void, Mutex::LockWhen, (const Condition& when), (this, when), When,
           "5Mutex8LockWhenERKNS0_9ConditionE")
MNEME_WAIT(bool, Mutex::LockWhenWithTimeout, (const Condition& when, Duration timeout),
           (this, when, timeout), WhenTimeout,
           "5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE")
MNEME_WAIT(bool, Mutex::LockWhenWithDeadline, (const Condition& when, Time deadline),
           (this, when, deadline), WhenDeadline,
           "5Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE")
MNEME_WAIT(void, Mutex::ReaderLockWhen, (const Condition& when), (this, when), When,
           "5Mutex14ReaderLockWhenERKNS0_9ConditionE")
MNEME_WAIT(bool, Mutex::ReaderLockWhenWithTimeout, (const Condition& when, Duration timeout),
           (this, when, timeout), WhenTimeout,
           "5Mutex25ReaderLockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE")
MNEME_WAIT(bool, Mutex::ReaderLockWhenWithDeadline, (const Condition& when, Time deadline),
           (this, when, deadline), WhenDeadline,
           "5Mutex26ReaderLockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE")

void CondVar::Wait(Mutex* mutex) {
  MNEME_REAL(void (*)(CondVar*, Mutex*), "", "7CondVar4WaitEPNS0_5MutexE");
  __tsan_release(mutex);
  Acquire acquire{mutex};
  IgnoreReads ignore;
  real(this, mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  MNEME_REAL(bool (*)(CondVar*, Mutex*, Duration), "",
             "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  __tsan_release(mutex);
  Acquire acquire{mutex};
  IgnoreReads ignore;
  return real(this, mutex, timeout);
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  MNEME_REAL(bool (*)(CondVar*, Mutex*, Time), "",
             "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  __tsan_release(mutex);
  Acquire acquire{mutex};
  IgnoreReads ignore;
  return real(this, mutex, deadline);
}

// HasBeenNotified is inline and loads the flag behind the mutex: the release is announced there.
void Notification::Notify() {
  MNEME_REAL(void (*)(Notification*), "", "12Notification6NotifyEv");
  __tsan_release(&notified_yet_);
  real(this);
}

void Notification::WaitForNotification() const {
  MNEME_REAL(void (*)(const Notification*), "K", "12Notification19WaitForNotificationEv");
  Acquire acquire{&notified_yet_};
  real(this);
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  MNEME_REAL(bool (*)(const Notification*, Duration), "K",
             "12Notification30WaitForNotificationWithTimeoutENS0_8DurationE");
  Acquire acquire{&notified_yet_};
  return real(this, timeout);
}

bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  MNEME_REAL(bool (*)(const Notification*, Time), "K",
             "12Notification31WaitForNotificationWithDeadlineENS0_4TimeE");
  Acquire acquire{&notified_yet_};
  return real(this, deadline);
}

bool BlockingCounter::DecrementCount() {
  MNEME_REAL(bool (*)(BlockingCounter*), "", "15BlockingCounter14DecrementCountEv");
  __tsan_release(this);
  return real(this);
}

void BlockingCounter::Wait() {
  MNEME_REAL(void (*)(BlockingCounter*), "", "15BlockingCounter4WaitEv");
  Acquire acquire{this};
  real(this);
}

ABSL_NAMESPACE_END
}  // namespace absl
