// Runs a program of build/.../bin as an operator would: flags, environment, streams, signals, exit
// status.

#ifndef MNEME_TESTS_SERVER_CHILD_PROGRAM_H_
#define MNEME_TESTS_SERVER_CHILD_PROGRAM_H_

#include <sys/types.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace mneme {

// One run, from construction to Wait(). Thread-compatible.
class ChildProgram {
 public:
  struct Result {
    // Exit status, or 128 + the signal that ended it.
    int status = -1;
    std::string output;
    std::string errors;
  };

  // `program`: its name in bin/. `environment`: NAME=value, beside PATH and what sanitizers need.
  // Its standard input is empty until WriteInput feeds it.
  explicit ChildProgram(const std::string& program, const std::vector<std::string>& arguments,
                        const std::vector<std::string>& environment = {});
  // Kills what still runs.
  ~ChildProgram();
  ChildProgram(const ChildProgram&) = delete;
  ChildProgram& operator=(const ChildProgram&) = delete;

  // False when the program reads no more.
  bool WriteInput(const std::string& text);
  void CloseInput();
  void Signal(int number);
  // Waits until stderr holds `text`; false when the program ended without it.
  bool AwaitError(const std::string& text);
  // The value of key=value in the first log line that has it; empty: none.
  std::string LogValue(const std::string& key);
  Result Wait();

 private:
  void Read(int fd, std::string* to);

  pid_t pid_ = -1;
  int input_ = -1;
  absl::Mutex mutex_;
  std::string output_ ABSL_GUARDED_BY(mutex_);
  std::string errors_ ABSL_GUARDED_BY(mutex_);
  int open_streams_ ABSL_GUARDED_BY(mutex_) = 2;
  std::vector<std::thread> readers_;
};

// Runs mneme-server to its end.
ChildProgram::Result RunServer(const std::vector<std::string>& arguments,
                               const std::vector<std::string>& environment = {});

}  // namespace mneme

#endif  // MNEME_TESTS_SERVER_CHILD_PROGRAM_H_
