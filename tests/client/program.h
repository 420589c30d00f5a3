// Runs build/.../bin/mneme as a person or a script would: its arguments, its three streams, its
// exit status.

#ifndef MNEME_TESTS_CLIENT_PROGRAM_H_
#define MNEME_TESTS_CLIENT_PROGRAM_H_

#include <sys/types.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace mneme {

// One run, from construction to Wait(). Thread-compatible.
class Program {
 public:
  struct Result {
    // Exit status, or 128 + the signal that ended it.
    int status = -1;
    std::string output;
    std::string errors;
  };

  // `terminal`: standard output and error are one pseudoterminal (all of it comes as `output`).
  explicit Program(const std::vector<std::string>& arguments, const std::string& address,
                   bool terminal = false);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void WriteInput(const std::string& text);
  void CloseInput();
  void Signal(int number);
  // Waits until the output has `text`, or ends; whether it has it.
  bool AwaitOutput(const std::string& text);
  // Closes the input, waits for the end and gives everything the program said.
  Result Wait();

 private:
  void Read(int fd, std::string* text);

  pid_t pid_ = -1;
  int input_ = -1;
  absl::Mutex mutex_;
  Result result_ ABSL_GUARDED_BY(mutex_);
  bool output_ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> readers_;
};

Program::Result RunProgram(const std::vector<std::string>& arguments, const std::string& address,
                           const std::string& input = "", bool terminal = false);

}  // namespace mneme

#endif  // MNEME_TESTS_CLIENT_PROGRAM_H_
